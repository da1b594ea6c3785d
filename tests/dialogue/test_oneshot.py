"""Reading aloud and writing down, outside of any conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundle import question
from text_bundle import with_text

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.dialogue.oneshot import can_speak_text, can_transcribe, speak, transcribe
from speechlm.dialogue.service import SpeechRequest
from speechlm.errors import InputError


@pytest.fixture(scope="module")
def plain(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


def units_of(model: SpeechLM) -> torch.Tensor:
    return model.encode(load_audio(question(), 16_000), 16_000).codes[:, :60]


def said(model: SpeechLM, request: SpeechRequest) -> list[np.ndarray]:
    return list(speak(model, request))


def written(model: SpeechLM, wave: np.ndarray) -> str:
    writing = transcribe(model, wave, 16_000)
    while True:
        try:
            next(writing)
        except StopIteration as end:
            return str(end.value)


def request_of(codes: torch.Tensor, **how: object) -> SpeechRequest:
    return SpeechRequest(units=tuple(map(tuple, codes.tolist())), **how)  # type: ignore[arg-type]


def test_units_are_said_as_the_vocoder_says_them_whole(plain: SpeechLM) -> None:
    codes = units_of(plain)
    pieces = said(plain, request_of(codes, sample_rate=plain.sample_rate))
    stream = plain.vocoder.stream(None)
    whole = torch.cat([stream.push(codes), stream.finish()]).numpy()
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert len(pieces[0]) < len(whole) / 4, "the first piece comes early"


def test_sound_comes_at_the_rate_that_was_asked_for(plain: SpeechLM) -> None:
    codes = units_of(plain)
    long = sum(map(len, said(plain, request_of(codes, sample_rate=48_000))))
    short = sum(map(len, said(plain, request_of(codes, sample_rate=16_000))))
    assert long == 3 * short


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.3, 4.0])
def test_speed_changes_how_long_it_takes(plain: SpeechLM, speed: float) -> None:
    codes = units_of(plain)
    kept = torch.tensor([int(i * speed) for i in range(200) if int(i * speed) < codes.shape[1]])
    fast = np.concatenate(said(plain, request_of(codes, speed=speed)))
    same = np.concatenate(said(plain, request_of(codes[:, kept])))
    assert np.array_equal(fast, same)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SpeechRequest(), "either text or units"),
        (SpeechRequest(units=((1, 2), (3, 4))), "units of 1 codebooks"),
        (SpeechRequest(units=((),)), "units of 1 codebooks"),
        (SpeechRequest(units=((0, 32),)), r"expected units in 0\.\.31, got 0\.\.32"),
        (SpeechRequest(units=((0,),), speed=5.0), r"speed within 0.25\.\.4.0"),
        (SpeechRequest(units=((0,),), voice="nobody"), "one voice"),
        (SpeechRequest(text="what is"), "does not speak text"),
    ],
)
def test_what_cannot_be_said_is_refused_before_any_sound(
    plain: SpeechLM, request_: SpeechRequest, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next(speak(plain, request_))


@pytest.mark.parametrize(
    ("layout", "speaks", "writes"),
    [
        ("interleave-words", True, True),
        ("text-parallel", True, False),
        ("chain", False, True),
        ("interleave-chunks", False, False),
    ],
)
def test_what_a_bundle_can_do_is_known_from_its_layout(
    plain: SpeechLM, layout: str, speaks: bool, writes: bool
) -> None:
    model = with_text(plain, layout)
    assert (can_speak_text(model), can_transcribe(model)) == (speaks, writes)
    assert not can_speak_text(plain)
    assert not can_transcribe(plain)
    if speaks:
        assert sum(map(len, speak(model, SpeechRequest(text="what is what"))))
    if writes:
        from toy_text import VOCABULARY

        wave = load_audio(question(), 16_000)[:16_000].numpy()
        heard = written(model, wave)
        assert heard == written(model, wave)
        assert set(heard.split()) <= {*VOCABULARY, ""}


def test_writing_down_is_refused_where_there_is_no_text(plain: SpeechLM) -> None:
    with pytest.raises(InputError, match="does not write down"):
        next(transcribe(plain, np.ones(16_000, np.float32), 16_000))
