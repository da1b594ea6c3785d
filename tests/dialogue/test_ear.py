"""What a session hears: speech as silero-vad's own wrapper finds it, units, an exact clock."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from small_talk import RATE, speech, talker, wave

pytest.importorskip("onnxruntime")
silero = pytest.importorskip("silero_vad")

from speechlm.audio import resample  # noqa: E402
from speechlm.dialogue import ear as ear_module  # noqa: E402
from speechlm.dialogue.ear import WINDOW_S, Ear  # noqa: E402
from speechlm.dialogue.voice_activity import SpeechDetector  # noqa: E402


@functools.cache
def scene(rate: int = RATE) -> torch.Tensor:
    """Silence, speech, a pause, speech, silence, with a soft noise below it all."""
    quiet = torch.zeros(RATE // 2)
    parts = [quiet, wave(speech("four")), quiet, wave(speech("nine")), quiet]
    noise = torch.randn(RATE * 4, generator=torch.Generator().manual_seed(0))
    whole = torch.cat(parts)
    return resample(whole + 1e-3 * noise[: len(whole)], RATE, rate)


def test_speech_is_as_probable_as_silero_says() -> None:
    theirs = silero.load_silero_vad(onnx=True)
    wanted = theirs.audio_forward(scene(), sr=RATE)[0]
    found = SpeechDetector().push(scene())
    np.testing.assert_allclose(found, wanted[: len(found)].numpy(), atol=1e-5)
    assert max(found) > 0.9
    assert min(found) < 0.1


def everything(rate: int, sizes: list[int], at: int) -> list[Any]:
    """All that an ear says of a scene that comes in pieces: a turn begins at its first speech,
    is asked about, and ends at the ``at``-th window of silence; another one is committed."""
    ear = Ear(talker().tokenizer, rate, threshold=0.5)
    said: list[Any] = []
    samples = scene(rate)
    pieces = torch.split(samples, [*sizes, len(samples) - sum(sizes)])
    for piece in pieces:
        for probability in ear.push(piece):
            said.append((probability, ear.heard_s, ear.speech_s, ear.silence_s, ear.turn_s))
            if not ear.listening and ear.speech_s > 0.06:
                ear.begin(ear.heard_s - ear.speech_s - 0.3, ear.heard_s - ear.speech_s)
            elif ear.listening and ear.silence_s > at * WINDOW_S:
                said += [ear.speech, ear.units().tolist(), ear.wave().tolist()]
                said.append(ear.finish().tolist())
    ear.catch_up()
    ear.begin(1.0)
    said += [ear.turn_s, ear.finish().tolist()]
    return said


@limits(max_examples=8, deadline=None)
@given(
    st.sampled_from((16_000, 24_000, 44_100)),
    st.lists(st.integers(0, 9000), max_size=4),
    st.integers(1, 9),
)
def test_nothing_depends_on_how_sound_is_cut(rate: int, sizes: list[int], at: int) -> None:
    assert everything(rate, sizes, at) == everything(rate, [], at)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_the_clock_counts_samples_of_the_input(rate: int) -> None:
    ear = Ear(talker().tokenizer, rate, threshold=0.5)
    windows = sum(1 for _ in ear.push(torch.zeros(rate * 3 + 5)))
    assert ear.num_samples == rate * 3 + 5
    assert ear.heard_s == windows * 512 / 16_000
    assert 3.0 - ear.heard_s < 0.08
    assert ear.at(ear.heard_s) == round(windows * 512 * rate / 16_000)
    ear.catch_up()
    assert abs(ear.start_s - 3.0) < 0.03


def test_a_turn_is_what_a_recording_of_it_gives() -> None:
    """From a little before the first sound to a little after the last, in the same units."""
    said = wave(speech("four"))
    lead = torch.zeros(RATE)
    ear = Ear(talker().tokenizer, RATE, threshold=0.5)
    for _ in ear.push(torch.cat([lead, said, torch.zeros(RATE // 2)])):
        if not ear.listening and ear.speech_s > 0.06:
            ear.begin(ear.heard_s - ear.speech_s - 0.3, ear.heard_s - ear.speech_s)
    found = ear.finish()
    margin = torch.zeros(round(0.05 * RATE))
    alone = talker().encode(torch.cat([margin, said, margin]), RATE).codes
    assert abs(found.shape[1] - alone.shape[1]) <= 6


def test_speech_that_ends_at_the_last_window_is_finished() -> None:
    """Units that wait for later sound come too where a turn ends at once."""
    ear = Ear(talker().tokenizer, RATE, threshold=0.5)
    list(ear.push(torch.zeros(RATE)))
    ear.catch_up()
    ear.begin()
    for _ in ear.push(wave(speech("four"))):
        pass
    ear.catch_up()
    length_s = ear.turn_s
    found = ear.finish().shape[1] / talker().tokenizer.frame_rate
    assert ear.speech is None
    assert abs(found - length_s) < 0.1


def test_of_a_long_turn_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear_module, "MAX_TURN_S", 1.0)
    sound = wave(speech("four", "nine", "one", "eleven", "five"))

    def heard() -> torch.Tensor:
        ear = Ear(talker().tokenizer, RATE, threshold=0.5)
        ear.begin()
        list(ear.push(sound))
        ear.catch_up()
        assert ear.turn_s == pytest.approx(len(sound) / RATE)
        return ear.finish()

    kept = heard()
    monkeypatch.setattr(ear_module, "MAX_TURN_S", 60.0)
    whole = heard()
    rate = talker().tokenizer.frame_rate
    assert rate <= kept.shape[1] <= 1.2 * rate < whole.shape[1]
    assert torch.equal(kept, whole[:, -kept.shape[1] :])


def test_an_open_turn_keeps_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear_module, "MAX_TURN_S", 1.0)
    ear = Ear(talker().tokenizer, RATE, threshold=0.5)
    ear.begin()
    for _ in range(20):
        list(ear.push(torch.zeros(RATE // 2)))
    assert ear.finish().shape[1] <= 1.2 * talker().tokenizer.frame_rate


def test_what_is_forgotten_comes_into_no_turn() -> None:
    ear = Ear(talker().tokenizer, RATE, threshold=0.5)
    list(ear.push(wave(speech("four"))))
    ear.catch_up()
    ear.forget()
    ear.begin(0.0)
    assert ear.turn_s == 0
    assert not ear.finish().shape[1]
    assert ear.speech_s == 0
