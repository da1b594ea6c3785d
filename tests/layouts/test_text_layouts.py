"""Text beside speech: where it goes, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_cases import allowed
from torch import Tensor

from speechlm.errors import ConfigError, InputError
from speechlm.layouts.monologue import fit_words
from speechlm.layouts.picture import picture
from speechlm.layouts.plan import PlannedLayout
from speechlm.layouts.registry import build_layout
from speechlm.layouts.spans import STRATEGIES, Word, choose_spans
from speechlm.layouts.vocabulary import Vocabulary


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def drawn(layout: PlannedLayout, content: Mapping[str, Tensor]) -> list[str]:
    return [" ".join(cell.label for cell in row) for row in picture(layout, content)]


def vocabulary_for(layout: PlannedLayout) -> Vocabulary:
    return Vocabulary(
        tokenizer_fingerprint="units-01",
        stream_sizes=layout.stream_sizes((9,) * layout.spec.num_codebooks),
        text_size=20,
        text_fingerprint="text-01",
    )


@pytest.mark.parametrize(
    ("tokens", "frames", "row"),
    [
        (0, 0, "[speech] [end]"),
        (3, 4, "[speech] t:0 t:1 u0:0 u0:1 u0:2 t:2 u0:3 [end]"),
        (1, 5, "[speech] t:0 u0:0 u0:1 u0:2 u0:3 u0:4 [end]"),
        (5, 1, "[speech] t:0 t:1 u0:0 t:2 t:3 t:4 [end]"),
        (2, 0, "[speech] t:0 t:1 [end]"),
    ],
)
def test_chunks_take_turns_and_what_is_left_follows(tokens: int, frames: int, row: str) -> None:
    layout = build_layout("interleave-chunks", {"text_chunk": 2, "speech_chunk": 3}, 1)
    assert drawn(layout, {"text": zeros(tokens), "speech": zeros(1, frames)}) == [row]


def test_glm_4_voices_ratio_is_the_default() -> None:  # arXiv:2412.02612
    layout = build_layout("interleave-chunks", {}, 1)
    content = {"question": zeros(1, 2), "text": zeros(20), "answer": zeros(1, 60)}
    (row,) = picture(layout, content)
    kinds = "".join(cell.label[0] for cell in row)
    assert kinds == "[qq[" + "t" * 13 + "a" * 26 + "t" * 7 + "a" * 34 + "["


def test_a_chain_of_modality() -> None:  # SpeechGPT, arXiv:2305.11000
    content = {
        "question": zeros(1, 2),
        "question_text": zeros(1),
        "answer_text": zeros(2),
        "answer": zeros(1, 1),
    }
    layout = build_layout("chain", {"text_weight": 0.5}, 1)
    assert drawn(layout, content) == [
        "[user] q0:0 q0:1 [text] qt:0 [text] at:0 at:1 [assistant] a0:0 [end]"
    ]
    sequence = layout.encode(vocabulary_for(layout), content)
    assert sequence.loss_weights.tolist() == [[0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1]]
    spoken = build_layout("chain", {"question_text": False, "answer_text": False}, 1)
    assert drawn(spoken, {name: content[name] for name in ("question", "answer")}) == [
        "[user] q0:0 q0:1 [assistant] a0:0 [end]"
    ]


def test_a_chain_may_be_told_what_was_said() -> None:
    layout = build_layout("chain", {}, 1)
    vocabulary = vocabulary_for(layout)
    known = {"question": zeros(1, 1), "question_text": zeros(2)}
    prompt = layout.prompt(vocabulary, known)
    rest = {"answer_text": torch.tensor([4, 5]), "answer": torch.tensor([[7]])}
    whole = layout.encode(vocabulary, {**known, **rest}).ids
    assert torch.equal(whole[:, : len(prompt)], prompt.ids)
    read = layout.read(vocabulary, prompt, whole[:, len(prompt) :])
    assert {name: value.tolist() for name, value in read.items()} == {
        "answer_text": [4, 5],
        "answer": [[7]],
    }
    cut = layout.read(vocabulary, prompt, whole[:, len(prompt) : len(prompt) + 1])
    assert {name: value.tolist() for name, value in cut.items()} == {
        "answer_text": [4],
        "answer": [[]],
    }


def test_spirit_lms_spans() -> None:  # arXiv:2402.05755
    layout = build_layout("interleave-words", {}, 1)
    spans = torch.tensor([[1, 2], [0, 1], [1, 1]])
    content = {"text": zeros(1), "speech": zeros(1, 3), "spans": spans}
    assert drawn(layout, content) == ["[speech] u0:0 u0:1 [text] t:0 [speech] u0:2 [end]"]


@pytest.mark.parametrize("spans", [[], [[1, 2], [1, 1]], [[1, 3], [2, 1]], [[1, 2], [0, 1]]])
def test_spans_that_do_not_use_up_the_content_are_refused(spans: list[list[int]]) -> None:
    layout = build_layout("interleave-words", {}, 1)
    content = {
        "text": zeros(1),
        "speech": zeros(1, 3),
        "spans": torch.tensor(spans, dtype=torch.int64).view(-1, 2),
    }
    with pytest.raises(InputError, match="expected spans"):
        layout.encode(vocabulary_for(layout), content)


def test_a_prompt_may_ask_for_the_other_kind() -> None:
    layout = build_layout("interleave-words", {}, 1)
    vocabulary = vocabulary_for(layout)
    content = {"text": zeros(0), "speech": zeros(1, 2), "spans": torch.tensor([[1, 2], [0, 0]])}
    prompt = layout.prompt(vocabulary, content)
    assert prompt.ids[0, -1] == vocabulary.text
    grammar = layout.grammar(vocabulary)
    (mask,) = allowed(grammar, prompt.state, 1)
    assert mask.nonzero().flatten().tolist() == list(vocabulary.text_range)
    written = torch.tensor([[vocabulary.first_text + 3, vocabulary.end]])
    read = layout.read(vocabulary, prompt, written)
    assert read["text"].tolist() == [3]
    assert read["spans"].tolist() == [[0, 1]]


def test_mini_omnis_text_leads() -> None:  # arXiv:2408.16725
    layout = build_layout("text-parallel", {}, 2)
    assert drawn(layout, {"text": zeros(2), "speech": zeros(2, 2)}) == [
        "[speech] t:0 t:1 [end] · ·",
        "[speech] · u0:0 u0:1 [end] ·",
        "[speech] · · u1:0 u1:1 [end]",
    ]
    assert drawn(layout, {"text": zeros(5), "speech": zeros(2, 0)}) == [
        "[speech] t:0 t:1 t:2 t:3 t:4 [end]",
        "[speech] · [end] · · · ·",
        "[speech] · · [end] · · ·",
    ]


def test_text_can_be_given_to_be_spoken() -> None:
    layout = build_layout("text-parallel", {}, 1)
    vocabulary = vocabulary_for(layout)
    prompt = layout.prompt(vocabulary, {"text": torch.tensor([4, 5])})
    assert prompt.given.tolist() == [[11, 12, vocabulary.end], [-1, -1, -1]]
    whole = layout.encode(vocabulary, {"text": torch.tensor([4, 5]), "speech": zeros(1, 3)}).ids
    assert layout.read(vocabulary, prompt, whole[:, 1:]).keys() == {"speech"}


TIMED: dict[str, Any] = {"timed": True}


def test_moshis_inner_monologue() -> None:  # arXiv:2410.00037, section 3.4.4
    layout = build_layout("text-parallel", TIMED, 2)
    content = {
        "text": zeros(3),
        "words": torch.tensor([[0, 1], [3, 2]]),
        "speech": zeros(2, 6),
    }
    assert drawn(layout, content) == [
        "[speech] t:0 [pad] [word] t:1 t:2 [pad] [end] ·",
        "[speech] u0:0 u0:1 u0:2 u0:3 u0:4 u0:5 [end] ·",
        "[speech] · u1:0 u1:1 u1:2 u1:3 u1:4 u1:5 [end]",
    ]
    weights = layout.encode(vocabulary_for(layout), content).loss_weights[0]
    assert weights.tolist() == [0, 1, 0.5, 1, 1, 1, 0.5, 1, 0]


@pytest.mark.parametrize(
    "words", [[[0, 2], [2, 1]], [[0, 1], [4, 2]], [[2, 1], [0, 2]], [[0, 3], [3, 0]], [[0, 2]]]
)
def test_words_that_frames_cannot_hold_are_refused(words: list[list[int]]) -> None:
    layout = build_layout("text-parallel", TIMED, 1)
    content = {"text": zeros(3), "words": torch.tensor(words), "speech": zeros(1, 5)}
    with pytest.raises(InputError, match=r"fit_words|expected words"):
        layout.encode(vocabulary_for(layout), content)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=6), st.integers(0, 40))
def test_fitted_words_can_be_laid_out(words: list[tuple[int, int]], frames: int) -> None:
    words.sort()
    tokens = sum(length for _, length in words)
    layout = build_layout("text-parallel", TIMED, 1)
    if words and tokens + len(words) - 1 > frames:
        with pytest.raises(InputError, match="do not fit into"):
            fit_words(words, frames)
        return
    fitted = fit_words(words, frames)
    content = {"text": zeros(tokens), "words": fitted, "speech": zeros(1, frames)}
    vocabulary = vocabulary_for(layout)
    read = layout.decode(vocabulary, layout.encode(vocabulary, content).ids)
    assert torch.equal(read["words"], fitted)


def test_words_that_fit_stay_where_they_are() -> None:
    assert fit_words([(2, 2), (5, 1), (8, 1)], 9).tolist() == [[2, 2], [5, 1], [8, 1]]
    assert fit_words([(2, 2), (4, 1), (8, 2)], 9).tolist() == [[2, 2], [5, 1], [7, 2]]


def test_two_speakers_are_told_apart_and_weighed_apart() -> None:  # dGSLM, arXiv:2203.16502
    layout = build_layout("duplex", {"other_weight": 0.25}, 1)
    vocabulary = vocabulary_for(layout)
    content = {"self": torch.tensor([[1, 2]]), "other": torch.tensor([[1, 2]])}
    sequence = layout.encode(vocabulary, content)
    assert sequence.ids.tolist() == [[4, 28, 29, 1], [4, 37, 38, 1]]
    assert sequence.loss_weights.tolist() == [[0, 1, 1, 1], [0, 0.25, 0.25, 0.25]]
    with pytest.raises(InputError, match="both speakers for as many frames, got 2 and 1"):
        layout.encode(vocabulary, {**content, "other": zeros(1, 1)})


@pytest.mark.parametrize("delays", [[0, 1, 0, 1], [2, 0, 0, 0]])
def test_where_one_begins_to_speak_can_weigh_more(delays: list[int]) -> None:
    options = {"delays": delays, "stream_weights": [1, 0.5], "onset_weight": 8}
    layout = build_layout("duplex", options, 2)
    own = torch.tensor([5] * 10 + [6] * 9 + [7, 5] + [8] * 12 + [9])
    content = {"self": torch.stack([own, own]), "other": torch.stack([own, own])}
    vocabulary = Vocabulary(tokenizer_fingerprint="", stream_sizes=layout.stream_sizes((10, 10)))
    weights = layout.encode(vocabulary, content).loss_weights
    begins = torch.tensor([10, 33])
    first = 1 + delays[0]
    assert torch.equal((weights[0] == 8).nonzero().flatten(), first + begins)
    assert set(weights[0].tolist()) == {0.0, 1.0, 8.0}
    assert set(weights[1].tolist()) == {0.0, 0.5}
    assert set(weights[2].tolist()) == {0.0, 1.0}


def test_what_the_other_says_meanwhile_can_be_given() -> None:
    layout = build_layout("duplex", {}, 2)
    vocabulary = vocabulary_for(layout)
    own, other = zeros(2, 1), torch.tensor([[0, 1, 2], [3, 4, 5]])
    prompt = layout.prompt(vocabulary, {"self": own, "other": other})
    assert prompt.ids[:, 1].tolist() == [27, vocabulary.pad, 45, vocabulary.pad]
    assert prompt.given.tolist() == [
        [-1, -1, -1],
        [36, -1, -1],
        [46, 47, -1],
        [57, 58, 59],
    ]
    with pytest.raises(InputError, match="as long as oneself, 3 frames or more, got 1"):
        layout.prompt(vocabulary, {"self": other, "other": own})


WORDS = [Word(tokens=(at, at), start=3 * at, end=3 * at + 2) for at in range(12)]
UNITS = torch.arange(36)[None]


def spans_of(strategy: str, seed: int, **options: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return choose_spans(WORDS, UNITS, strategy, generator=generator, **options)


@given(
    st.sampled_from(STRATEGIES),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.floats(1, 20),
)
def test_every_word_is_spoken_or_written_in_order(
    strategy: str, seed: int, share: float, mean_words: float
) -> None:
    content = spans_of(strategy, seed, probability=share, fraction=share, mean_words=mean_words)
    layout = build_layout("interleave-words", {}, 1)
    vocabulary = Vocabulary(
        tokenizer_fingerprint="units",
        stream_sizes=(36,),
        text_size=12,
        text_fingerprint="text",
    )
    read = layout.decode(vocabulary, layout.encode(vocabulary, content).ids)
    assert all(torch.equal(read[name], content[name]) for name in content)
    written = set(content["text"].tolist())
    spoken = {unit // 3 for unit in content["speech"][0].tolist() if unit % 3 != 2}
    assert written.isdisjoint(spoken)
    assert written | spoken == set(range(12))
    again = spans_of(strategy, seed, probability=share, fraction=share, mean_words=mean_words)
    assert all(torch.equal(again[name], content[name]) for name in content)


def test_poisson_spans_cover_their_fraction() -> None:
    for seed in range(20):
        content = spans_of("poisson", seed, mean_words=2, fraction=0.3)
        assert len(content["text"]) == 2 * (12 - 4)


def test_silence_is_kept_within_spoken_spans_only() -> None:
    content = spans_of("random", 0, probability=1.0)
    assert content["speech"].tolist() == [list(range(35))]
    assert content["spans"].tolist() == [[1, 35]]


def test_words_without_units_leave_no_empty_span() -> None:
    generator = torch.Generator().manual_seed(0)
    words = [Word(tokens=(), start=0, end=0), Word(tokens=(), start=0, end=0)]
    content = choose_spans(words, UNITS[:, :0], "random", generator=generator)
    assert content["spans"].tolist() == [[0, 0]]


def test_bad_strategies_and_words_are_refused() -> None:
    generator = torch.Generator()
    with pytest.raises(ConfigError, match="unknown strategy 'poison'; known: random"):
        choose_spans(WORDS, UNITS, "poison", generator=generator)
    with pytest.raises(InputError, match="order of their start"):
        choose_spans(WORDS[::-1], UNITS, generator=generator)
    with pytest.raises(InputError, match="order of their start"):
        choose_spans([], UNITS, generator=generator)
