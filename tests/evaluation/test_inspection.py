"""What inspection finds: exactness where it is, and its lack where a part breaks its promise."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlm.cli.main import main
from speechlm.data.corpus import Recording, Word
from speechlm.errors import InputError
from speechlm.evaluation.inspection import first_sound_ms, inspect_tokenizer
from speechlm.evaluation.word_error import (
    SentenceJudge,
    spoken_words,
    word_error,
    word_error_difference,
)
from speechlm.resynthesis import Resynthesizer
from speechlm.units import Units

THIRD_PARTY = Path(__file__).parents[1] / "helpers" / "third_party"
HOP = 160


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(THIRD_PARTY)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two tones by turns, half a second each, so that phones are known."""
    found = []
    for number in range(3):
        time = np.arange(16_000 + 50 * number) / 16_000
        high = (time * 2).astype(int) % 2 == 1
        wave = 0.5 * np.where(
            high, np.sin(2 * math.pi * 800 * time), np.sin(2 * math.pi * 100 * time)
        )
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, wave, 16_000)
        phones = (Word("low", 0.0, 0.5), Word("high", 0.5, 1.0))
        found.append(Recording(id=path.name, source=str(path), audio=path, phones=phones))
    return found


def tone_tokenizer():  # type: ignore[no-untyped-def]
    from frame_table import FrameTable

    time = torch.arange(HOP) / 16_000
    table = torch.stack([0.5 * torch.sin(2 * math.pi * hz * time) for hz in (100, 800, 3000)])
    return FrameTable(table)


def test_figures_are_those_of_the_units(recordings: list[Recording]) -> None:
    from frame_table import FrameTableVocoder

    tokenizer = tone_tokenizer()
    pair = Resynthesizer(tokenizer, FrameTableVocoder.for_tokenizer(tokenizer))
    figures, samples = inspect_tokenizer(tokenizer, recordings, resynthesizer=pair, judge=False)
    assert figures["tokenizer"]["bits_per_second"] == pytest.approx(100 * math.log2(3))
    assert figures["rates"]["units_per_second"] == pytest.approx(100)
    # Two runs a second, and the odd samples at the end.
    assert 2 <= figures["rates"]["collapsed_units_per_second"] < 4
    (book,) = figures["codebooks"]
    assert (book["used"], book["size"]) == (2, 3)
    assert book["perplexity"] == pytest.approx(2, rel=0.02)
    assert figures["agreement"]["batch"] == 1
    assert set(figures["agreement"]["chunks"].values()) == {1}
    assert "1 sample" in figures["agreement"]["chunks"]
    assert figures["phones"]["pnmi"] > 0.9
    assert figures["speed"]["times_real_time"] > 0
    assert figures["resynthesis"]["times_real_time"] > 0
    assert [sample.title for sample in samples].count("a human voice") == 3


def test_a_part_that_breaks_its_promises_is_found_out(
    recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    import frame_table

    tokenizer = tone_tokenizer()
    # It forgets what was held back between pushes, and hears the padding of a batch.
    monkeypatch.setattr(
        frame_table.FrameTableStream,
        "push",
        lambda self, samples: self._codes(
            [frame[None] for frame in samples[: len(samples) // HOP * HOP].double().split(HOP)]
            if len(samples) >= HOP
            else []
        ),
    )
    figures, _ = inspect_tokenizer(tokenizer, recordings, judge=False)
    assert figures["agreement"]["chunks"]["37 ms"] < 0.9


def test_the_page_and_the_figures_are_written(
    recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tone_tokenizer()
    tokenizer.save(tmp_path / "part")
    out = tmp_path / "out"
    words = ["inspect", "tokenizer", str(tmp_path / "part"), str(recordings[0].audio)]
    assert main([*words, "-o", str(out), "--vocoder", "frame-table", "--no-judge"]) == 0
    page = (out / "tokenizer.html").read_text()
    assert tokenizer.fingerprint in page
    assert page.count("<audio") == 2 * 4
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
    assert json.loads((out / "tokenizer.json").read_text())["agreement"]["batch"] == 1
    assert "the same in a batch: 100.00 %" in capsys.readouterr().out
    # It names no vocoder of its own: that is said, and the rest is measured.
    assert main([*words, "-o", str(tmp_path / "alone"), "--no-judge"]) == 0
    assert "without resynthesis: " in capsys.readouterr().err
    assert (tmp_path / "alone" / "tokenizer.html").is_file()


def test_the_wait_for_the_first_sound_is_that_of_a_stream() -> None:
    from frame_table import FrameTableVocoder

    tokenizer = tone_tokenizer()
    units = Units(
        codes=torch.zeros(1, 5, dtype=torch.int64),
        frame_rate=100.0,
        fingerprint=tokenizer.fingerprint,
    )
    assert 0 < first_sound_ms(FrameTableVocoder.for_tokenizer(tokenizer), [units]) < 1000


def test_word_errors_count_what_was_heard_wrongly() -> None:
    pytest.importorskip("pocketsphinx")
    from speechlm.audio import load_audio
    from speechlm.data.human import human_clips

    clips = human_clips("answers")
    said = [clips[name] for name in ("seven", "monday", "eleven")]
    judge = SentenceJudge([clip.text for clip in said], ["Tuesday?", "twelve"], seed=1)
    assert judge.sentences[:3] == ["eleven", "monday", "seven"]
    assert set(judge.sentences[3:]) == {"tuesday", "twelve"}
    waves = [load_audio(clip.path, 16_000) for clip in said]
    right = judge.errors(waves, 16_000, [clip.text for clip in said])
    assert [errors for errors, _ in right] == [0, 0, 0]
    wrong = judge.errors(waves[:1], 16_000, ["monday and tuesday"])
    assert wrong == [(3, "seven")]
    with pytest.raises(InputError, match="texts of English words"):
        SentenceJudge(["", "123"], [], seed=1)


def test_word_errors_and_their_growth_have_intervals() -> None:
    assert spoken_words("What's 3, please: zero-one?") == ["what's", "please", "zero", "one"]
    errors, words = [0, 1] * 50, [4] * 100
    rate = word_error(errors, words, seed=1)
    assert rate["word_error"] == pytest.approx(0.125)
    assert 0.09 < rate["low"] < 0.125 < rate["high"] < 0.16
    same = word_error_difference(errors, errors, words, seed=1)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    grown = word_error_difference([0] * 100, errors, words, seed=1)
    assert grown["low"] > 0
