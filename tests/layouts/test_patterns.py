"""Where units go: small tables by hand, as the papers draw them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechlm.errors import InputError
from speechlm.layouts.picture import picture, sample_content
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary


def table(name: str, options: dict[str, Any], num_codebooks: int, frames: int) -> list[str]:
    """The picture of a recording alone, a line a row, without its mark."""
    layout = build_layout(name, options, num_codebooks)
    content = sample_content(layout, num_frames=frames, num_tokens=0, asks=False)
    return [" ".join(cell.label for cell in row[1:]) for row in picture(layout, content)]


def test_musicgens_patterns() -> None:  # arXiv:2306.05284, figure 1, K = 4
    assert table("parallel", {}, 3, 2) == [
        "u0:0 u0:1 [end]",
        "u1:0 u1:1 [end]",
        "u2:0 u2:1 [end]",
    ]
    assert table("delay", {}, 4, 3) == [
        "u0:0 u0:1 u0:2 [end] · · ·",
        "· u1:0 u1:1 u1:2 [end] · ·",
        "· · u2:0 u2:1 u2:2 [end] ·",
        "· · · u3:0 u3:1 u3:2 [end]",
    ]
    assert table("flattened", {}, 3, 2) == ["u0:0 u1:0 u2:0 u0:1 u1:1 u2:1 [end]"]


def test_moshis_delays() -> None:  # arXiv:2410.00037, section 3.4.4
    assert table("delay", {"delays": [0, 1, 1]}, 3, 2) == [
        "u0:0 u0:1 [end] ·",
        "· u1:0 u1:1 [end]",
        "· u2:0 u2:1 [end]",
    ]


def test_audiolms_stages() -> None:  # arXiv:2209.03143, figure 2
    stages = {"stages": [[0], [1, 2], [3]]}
    assert table("coarse-first", stages, 4, 2) == ["u0:0 u0:1 u1:0 u2:0 u1:1 u2:1 u3:0 u3:1 [end]"]


def test_groups() -> None:  # arXiv:2412.15649
    assert table("grouped", {"size": 2}, 1, 3) == ["u0:0 u0:2 [end]", "u0:1 · [end]"]
    assert table("grouped", {"size": 2}, 1, 0) == ["[end]", "[end]"]


def test_prosody_follows_its_unit() -> None:  # arXiv:2109.03264
    assert table("prosody", {}, 1, 2) == [
        "u0:0 u0:1 [end] ·",
        "· u1:0 u1:1 [end]",
        "· u2:0 u2:1 [end]",
    ]


def test_nothing_is_just_the_end() -> None:
    assert table("delay", {}, 2, 0) == ["[end] ·", "· [end]"]
    assert table("coarse-first", {}, 3, 0) == ["[end]"]


FLAT = Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=(9,))


def test_only_the_answer_counts_unless_the_question_is_weighted() -> None:
    content = {"question": torch.tensor([[1, 2]]), "answer": torch.tensor([[3, 4, 5]])}
    plain = build_layout("flat", {}, 1).encode(FLAT, content)
    user, assistant, end = FLAT.user, FLAT.assistant, FLAT.end
    assert plain.ids.tolist() == [[user, 8, 9, assistant, 10, 11, 12, end]]
    assert plain.loss_weights.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    weighted = build_layout("flat", {"question_weight": 0.5}, 1).encode(FLAT, content)
    assert weighted.loss_weights.tolist() == [[0, 0.5, 0.5, 0.5, 1, 1, 1, 1]]


def test_streams_count_as_they_are_weighted() -> None:
    layout = build_layout("delay", {"stream_weights": [100, 1]}, 2)
    vocabulary = Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(4, 4))
    sequence = layout.encode(vocabulary, {"speech": torch.zeros(2, 2).long()})
    assert sequence.loss_weights.tolist() == [[0, 100, 100, 100, 0], [0, 0, 1, 1, 1]]


def test_a_delayed_continuation_knows_part_of_the_columns_to_come() -> None:
    layout = build_layout("delay", {"delays": [0, 2]}, 2)
    vocabulary = Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(4, 4))
    prompt = layout.prompt(vocabulary, {"speech": torch.tensor([[0, 1, 2], [1, 2, 3]])})
    speech, pad = vocabulary.speech, vocabulary.pad
    assert prompt.ids.tolist() == [[speech, 7, 8, 9], [speech, pad, pad, 12]]
    assert prompt.given.tolist() == [[-1, -1], [13, 14]]
    short = layout.prompt(vocabulary, {"speech": torch.tensor([[0], [1]])})
    assert short.ids.tolist() == [[speech, 7], [speech, pad]]
    assert short.given.tolist() == [[-1, -1], [pad, 12]]


def test_stages_go_on_from_whole_stages_only() -> None:
    layout = build_layout("coarse-first", {"stages": [[0], [1, 2]]}, 3)
    vocabulary = Vocabulary(tokenizer_fingerprint="codec", stream_sizes=(4, 4, 4))
    prompt = layout.prompt(vocabulary, {"speech": torch.tensor([[1, 3]])})
    assert prompt.ids.tolist() == [[vocabulary.speech, 8, 10]]
    with pytest.raises(InputError, match=r"whole stages only: expected speech of 1 codebooks"):
        layout.prompt(vocabulary, {"speech": torch.zeros(3, 2).long()})


def test_a_group_that_was_begun_is_filled() -> None:
    layout = build_layout("grouped", {"size": 3}, 1)
    vocabulary = Vocabulary(tokenizer_fingerprint="units", stream_sizes=(4, 4, 4))
    prompt = layout.prompt(vocabulary, {"speech": torch.tensor([[0, 1, 2, 3]])})
    assert prompt.ids.tolist() == [[4, 7], [4, 12], [4, 17]]
    assert prompt.given.tolist() == [[10], [-1], [-1]]
    generated = torch.tensor([[10, 1], [11, 1], [vocabulary.pad, 1]])
    assert layout.read(vocabulary, prompt, generated)["speech"].tolist() == [[0]]


def test_repeats_can_be_merged() -> None:
    layout = build_layout("flat", {"collapse": True}, 1)
    ids = layout.encode(FLAT, {"speech": torch.tensor([[3, 3, 1, 1, 1, 3]])}).ids
    assert layout.decode(FLAT, ids)["speech"].tolist() == [[3, 1, 3]]


def test_rows_of_one_stream_are_one_run_of_ids() -> None:
    (row,) = build_layout("flat", {}, 1).row_ids(FLAT)
    assert torch.equal(row, torch.arange(FLAT.size))
