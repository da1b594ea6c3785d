from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import InputError, PluginError
from speechlm.evaluation import judge as judge_module
from speechlm.evaluation.judge import SAMPLE_RATE, GrammarJudge

pytest.importorskip("pocketsphinx")

ANSWERS = human_clips("answers")


@pytest.fixture(scope="module")
def judge() -> GrammarJudge:
    return GrammarJudge([clip.text for clip in ANSWERS.values()])


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    return [load_audio(clip.path, SAMPLE_RATE) for clip in ANSWERS.values()]


def test_nearly_every_original_recording_is_understood(
    judge: GrammarJudge, waves: list[Tensor]
) -> None:
    heard = judge.transcribe_many(waves, SAMPLE_RATE, num_workers=1)
    texts = [clip.text for clip in ANSWERS.values()]
    wrong = [pair for pair in zip(texts, heard, strict=True) if pair[0] != pair[1]]
    assert len(wrong) <= 3, wrong


def test_processes_and_order_do_not_change_what_is_heard(
    judge: GrammarJudge, waves: list[Tensor]
) -> None:
    alone = judge.transcribe_many(waves, SAMPLE_RATE, num_workers=1)
    backwards = judge.transcribe_many(waves[::-1], SAMPLE_RATE, num_workers=2)
    assert backwards[::-1] == alone


def test_loudness_rate_and_silence_around_do_not_matter(judge: GrammarJudge) -> None:
    clip = ANSWERS["november"]
    wave = load_audio(clip.path, 8_000)
    silence = torch.zeros(4_000)
    assert judge.transcribe(0.02 * torch.cat([silence, wave, silence]), 8_000) == "november"


@pytest.mark.parametrize("samples", [0, 1, 100, 2000])
def test_next_to_nothing_is_none_of_the_answers(judge: GrammarJudge, samples: int) -> None:
    assert judge.transcribe(torch.zeros(samples), SAMPLE_RATE) == ""


def test_answers_of_several_words_and_capitals_are_taken(waves: list[Tensor]) -> None:
    judge = GrammarJudge(["Monday", "Monday Tuesday", "Tuesday"])
    names = list(ANSWERS)
    both = torch.cat([waves[names.index("monday")], waves[names.index("tuesday")]])
    assert judge.transcribe(both, SAMPLE_RATE) == "monday tuesday"


def test_words_that_cannot_be_pronounced_are_all_named() -> None:
    with pytest.raises(InputError, match="'blorptish', 'quxley'"):
        GrammarJudge(["monday", "quxley blorptish"])


def test_no_answers_are_refused() -> None:
    with pytest.raises(InputError, match="expected the answers"):
        GrammarJudge([])


def test_without_pocketsphinx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_module._decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[evaluate\]'"):
        GrammarJudge(["monday"])
