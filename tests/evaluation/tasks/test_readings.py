"""What comes after a prompt counts alone, be it speech or text, continued or answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_bundle import small_bundle
from toy_text import text_tokenizer

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.tasks.pair_accuracy import score_pairs
from speechlm.evaluation.tasks.pairs import READERS, Pair
from speechlm.evaluation.tasks.readings import read_members
from speechlm.layouts.registry import build_layout
from speechlm.layouts.text import TextTokenizer
from speechlm.model.decoder import Decoder
from speechlm.model.likelihood import score, score_recordings
from speechlm.model.unit_lm import UnitLM
from speechlm.units import Units


def encoded(model: SpeechLM, path: Path) -> Units:
    rate = model.tokenizer.sample_rate
    return model.encode(load_audio(path, rate), rate)


def prompted(clips: list[Pair]) -> list[Pair]:
    return [
        replace(pair, prompt=clips[index - 1].positive, type="")
        for index, pair in enumerate(clips[:4])
    ]


def test_a_prompt_is_not_scored_itself(model: SpeechLM, clips: list[Pair]) -> None:
    pairs = prompted(clips)
    for pair, item in zip(pairs, score_pairs(model, pairs), strict=True):
        assert pair.prompt is not None
        assert not item.error
        prompt = encoded(model, pair.prompt)
        for place, path in enumerate((pair.positive, pair.negative)):
            units = encoded(model, path)
            codes = torch.cat([prompt.codes, units.codes], dim=1)
            whole = replace(units, codes=codes)
            span_s = (prompt.duration_s, whole.duration_s)
            continued = score_recordings(model.lm, [whole], spans_s=[span_s])[0]
            assert item.note["scores"]["sum"][place] == pytest.approx(continued.total)
            assert item.note["scores"]["per_second"][place] == pytest.approx(continued.per_second)
            content = {"question": prompt.codes, "answer": units.codes}
            sequence = model.lm.layout.encode(model.lm.vocabulary, content)
            answered = score(model.lm, [sequence], spans=[(0, units.num_frames)])[0]
            assert item.note["scores"]["answer_sum"][place] == pytest.approx(answered.total)
            assert answered.num_units == units.num_frames
        assert "answer_localised" not in item.figures


@pytest.fixture(scope="module")
def writing() -> SpeechLM:
    """A bundle whose LM mixes text and speech."""
    plain = small_bundle()
    text = TextTokenizer(text_tokenizer())
    vocabulary = replace(
        plain.lm.vocabulary, text_size=text.size, text_fingerprint=text.fingerprint
    )
    torch.manual_seed(3)
    decoder = Decoder(replace(plain.lm.decoder.config, vocab_size=vocabulary.size))
    layout = build_layout("interleave-words", {}, 1)
    return SpeechLM(plain.tokenizer, UnitLM(decoder, vocabulary, layout, text), plain.vocoder)


@pytest.fixture
def told(clips: list[Pair], tmp_path: Path) -> Path:
    """A story that is spoken and written."""
    for name, path, text in (
        ("mutual", clips[0].positive, "what is one"),
        ("correct", clips[1].positive, "two is"),
        ("incorrect", clips[2].positive, "what"),
    ):
        (tmp_path / f"7_{name}.wav").write_bytes(path.read_bytes())
        (tmp_path / f"7_{name}.txt").write_text(text)
    return tmp_path


@pytest.mark.parametrize("ways", ["", "-st", "-ts", "-tt"])
def test_stories_from_speech_or_text_to_either(ways: str, told: Path, writing: SpeechLM) -> None:
    (pair,) = READERS[f"tsc{ways}"](told)
    (item,) = score_pairs(writing, [pair])
    assert not item.error
    assert "answer_sum" not in item.figures
    assert ("per_second" in item.figures) == (not ways.endswith("t"))
    # The prompt's own likelihood is the same in both: left out or not, the difference is that.
    lm = writing.lm
    readings = read_members(writing, pair)[""]
    whole = [one.total for one in score(lm, [one.sequence for one in readings])]
    positive, negative = item.note["scores"]["sum"]
    assert positive - negative == pytest.approx(whole[0] - whole[1], abs=1e-4)
    counted = positive / item.note["scores"]["per_unit"][0]
    expected = 2 if ways.endswith("t") else encoded(writing, pair.positive).num_frames
    assert counted == pytest.approx(expected)


def test_text_needs_an_lm_that_reads_it(told: Path, model: SpeechLM, writing: SpeechLM) -> None:
    (pair,) = READERS["ssc-tt"](told)
    (item,) = score_pairs(model, [pair])
    assert "expected an LM that knows text" in item.error
    first = SpeechLM(
        writing.tokenizer,
        UnitLM(
            writing.lm.decoder,
            writing.lm.vocabulary,
            build_layout("chain", {}, 1),
            writing.lm.text_tokenizer,
        ),
        writing.vocoder,
    )
    with pytest.raises(InputError, match="such as interleave-words"):
        read_members(first, pair)
    pair.positive.write_bytes("été".encode("latin-1"))
    with pytest.raises(CorpusError, match="UTF-8"):
        read_members(writing, pair)
    pair.positive.write_text(" ")
    with pytest.raises(CorpusError, match="empty"):
        read_members(writing, pair)


def test_a_story_without_its_beginning_is_told(told: Path) -> None:
    (told / "7_mutual.txt").unlink()
    with pytest.raises(CorpusError, match=r"7_mutual.txt is missing"):
        READERS["ssc-ts"](told)
    assert READERS["ssc"](told)[0].prompt == told / "7_mutual.wav"
    (told / "7_mutual.wav").unlink()
    assert READERS["ssc"](told)[0].prompt is None
