"""Pairs are scored by what the model finds probable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.evaluation.tasks.items import Item, figure, subsets
from speechlm.evaluation.tasks.pair_accuracy import VARIANTS, differing, make_item, score_pairs
from speechlm.evaluation.tasks.pairs import Pair
from speechlm.model.likelihood import score_recordings

UNITS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(UNITS, UNITS)
def test_what_differs_lies_between_what_is_shared(first: list[int], second: list[int]) -> None:
    spans = differing(torch.tensor([first]), torch.tensor([second]))
    if first == second:
        assert spans is None
        return
    assert spans is not None
    (begin, end), (other_begin, other_end) = spans
    assert begin == other_begin
    assert first[:begin] == second[:begin]
    assert len(first) - end == len(second) - other_end
    assert first[end:] == second[other_end:]
    assert begin < end
    assert other_begin < other_end


def test_scores_are_the_likelihoods_of_the_model(model: SpeechLM, clips: list[Pair]) -> None:
    scored = list(score_pairs(model, clips))
    assert [one.note["positive"] for one in scored] == [str(pair.positive) for pair in clips]
    rate = model.tokenizer.sample_rate
    for one, pair in zip(scored[:3], clips, strict=False):
        scores = one.note["scores"]
        units = [
            model.encode(load_audio(path, rate), rate) for path in (pair.positive, pair.negative)
        ]
        alone = [score_recordings(model.lm, [each])[0] for each in units]
        assert scores["sum"] == pytest.approx([each.total for each in alone])
        assert scores["per_unit"] == pytest.approx([each.per_unit for each in alone])
        assert scores["per_second"] == pytest.approx([each.per_second for each in alone])
        spans = differing(units[0].codes, units[1].codes)
        assert spans is not None
        local = [
            score_recordings(model.lm, [each], spans_s=[(start / 50, stop / 50)])[0].total
            for each, (start, stop) in zip(units, spans, strict=True)
        ]
        assert scores["localised"] == pytest.approx(local)


def test_a_pair_of_the_same_is_a_tie_and_gives_50(model: SpeechLM, clips: list[Pair]) -> None:
    same = [Pair(id=pair.id, positive=pair.positive, negative=pair.positive) for pair in clips]
    scored = list(score_pairs(model, same))
    for variant in VARIANTS:
        found = figure(scored, variant, seed=1)
        assert found is not None
        assert found.value == 50.0


def test_items_count_once_and_subsets_are_parts() -> None:
    def one(item: str, voice: str, right: bool, frequency: str) -> Item:
        pair = Pair(
            id=item, voice=voice, positive=Path("p"), negative=Path("n"), frequency=frequency
        )
        return make_item(pair, {"sum": (1.0, 0.0) if right else (0.0, 1.0)})

    scored = [
        *(one("a", voice, True, "oov") for voice in "ABC"),
        *(one("b", voice, voice == "A", "3") for voice in "AB"),
        one("c", "A", False, "200"),
    ]
    found = figure(scored, "sum", seed=1)
    assert found is not None
    assert found.value == pytest.approx(50.0)
    assert found.n == 3
    parts = subsets(scored)
    assert {name: len(part) for name, part in parts.items()} == {
        "": 6,
        "frequency=oov": 3,
        "frequency=1-5": 2,
        "frequency=>100": 1,
        "in-vocabulary": 3,
    }
