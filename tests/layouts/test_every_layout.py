"""What holds of every layout: exact inverse, weights, grammar, saving."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import CASES, allowed, build_case, columns_after, known_part, random_content
from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.grid import Layout, Prompt
from speechlm.layouts.merged import Merged
from speechlm.layouts.plan import CONTROL, PlannedLayout, check_plan
from speechlm.layouts.registry import LAYOUTS, layout_from_dict
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import collapse_repeats

LENGTHS = st.one_of(st.integers(0, 2), st.integers(0, 14))
REPEATS_MERGED = {"flat-collapsed", "merged", "merged-within", "merged-one"}
EVERY = pytest.mark.parametrize("case", CASES)
FEW = settings(max_examples=25)  # of each of the cases


def expected(case: str, content: dict[str, Tensor]) -> dict[str, Tensor]:
    if case == "flat-collapsed":
        return {name: collapse_repeats(codes)[0] for name, codes in content.items()}
    layout = build_case(case)[0]
    if isinstance(layout, Merged):
        return {name: layout.merged(codes)[0] for name, codes in content.items()}
    return content


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert {name: value.tolist() for name, value in got.items()} == {
        name: value.tolist() for name, value in wanted.items()
    }


@EVERY
@FEW
@given(frames=LENGTHS, asked=st.none() | LENGTHS, tokens=LENGTHS, seed=st.integers(0, 2**31))
def test_decoding_undoes_encoding(
    case: str, frames: int, asked: int | None, tokens: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=frames, asked=asked, tokens=tokens, seed=seed)
    sequence = layout.encode(vocabulary, content)
    assert sequence.num_rows == layout.num_rows
    assert_same(layout.decode(vocabulary, sequence.ids), expected(case, content))
    for row, known in zip(sequence.ids, layout.row_ids(vocabulary), strict=True):
        assert torch.isin(row, known).all()


@EVERY
@FEW
@given(frames=LENGTHS, asked=st.none() | LENGTHS, tokens=LENGTHS, seed=st.integers(0, 2**31))
def test_every_element_has_one_cell_and_fill_weighs_nothing(
    case: str, frames: int, asked: int | None, tokens: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    assert isinstance(layout, PlannedLayout)
    content = random_content(layout, frames=frames, asked=asked, tokens=tokens, seed=seed)
    plan, counted = layout.plan(content)
    if isinstance(layout, Merged):  # what is the same as before has no cell
        held = plan.cells[plan.is_content]
        assert len(held.unique()) == len(held)
    else:
        check_plan(plan, sum(value.numel() for _, value in counted))
    sequence = layout.encode(vocabulary, content)
    assert not sequence.loss_weights[:, 0].any()
    fill = (sequence.ids == vocabulary.pad) & (plan.kinds == CONTROL)
    timed_text = any(field.kind == "words" for field in layout.fields)
    assert not sequence.loss_weights[fill][: None if not timed_text else 0].any()
    # What is generated counts, all of it; a question only where it has been given a weight.
    asks = "question" in content
    first = int((sequence.ids[0] == vocabulary.assistant).nonzero()[0]) + 1 if asks else 1
    if case.startswith("chain"):
        first = 1 + content["question"].numel() + 1
    generated = plan.is_content[:, first:]
    assert (sequence.loss_weights[:, first:][generated] > 0).all()
    if asks and "question_weight" not in CASES[case][1]:
        assert not sequence.loss_weights[:, :first].any()


def replay(layout: Layout, vocabulary: Vocabulary, prompt: Prompt, columns: Tensor) -> None:
    """Assert that the grammar takes ``columns`` and ends with the last."""
    grammar = layout.grammar(vocabulary)
    state = grammar.start if prompt.state is None else prompt.state
    last = columns.shape[1] - 1
    for at, column in enumerate(columns.T.tolist()):
        assert state is not None
        mask = allowed(grammar, state, layout.num_rows)
        for row, id_ in enumerate(column):
            known = int(prompt.given[row, at]) if at < prompt.given.shape[1] else -1
            assert id_ == known if known >= 0 else bool(mask[row, id_]), (at, row, state)
        state = grammar.advance(state, column)
        assert (state is None) == (at == last), (at, last, state)


@EVERY
@FEW
@given(
    frames=LENGTHS,
    asked=st.none() | LENGTHS,
    tokens=LENGTHS,
    known=LENGTHS,
    seed=st.integers(0, 2**31),
)
def test_the_grammar_takes_what_follows_a_prompt_and_ends_with_it(
    case: str, frames: int, asked: int | None, tokens: int, known: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=frames, asked=asked, tokens=tokens, seed=seed)
    if case in REPEATS_MERGED:
        content = expected(case, content)
    start = known_part(layout, content, known)
    if layout.name == "coarse-first" and "speech" in start and not frames:
        return  # there is nothing to complete
    prompt = layout.prompt(vocabulary, start)
    columns = columns_after(prompt, layout.encode(vocabulary, content).ids)
    replay(layout, vocabulary, prompt, columns)
    read = layout.read(vocabulary, prompt, columns)
    for name, value in read.items():
        if name in ("text", "words", "spans") and "question" not in start:
            continue  # counted from the prompt on
        whole = content[name]
        if name in start and layout.name != "coarse-first":
            whole = whole[:, start[name].shape[1] :]
        assert torch.equal(value, whole), name


@EVERY
@FEW
@given(asked=st.none() | LENGTHS, known=LENGTHS, seed=st.integers(0, 2**31))
def test_whatever_the_grammar_lets_pass_can_be_read(
    case: str, asked: int | None, known: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=known + 1, asked=asked, tokens=known, seed=seed)
    prompt = layout.prompt(vocabulary, known_part(layout, content, known))
    grammar = layout.grammar(vocabulary)
    state = grammar.start if prompt.state is None else prompt.state
    generator = torch.Generator().manual_seed(seed)
    columns = []
    while state is not None and len(columns) < 25:
        likely = allowed(grammar, state, layout.num_rows).float()
        likely[:, : vocabulary.first_text] *= 3  # ends and marks, so that walks come to them
        column = torch.multinomial(likely, 1, generator=generator)[:, 0]
        if len(columns) < prompt.given.shape[1]:
            given_cells = prompt.given[:, len(columns)]
            column = column.where(given_cells < 0, given_cells)
        columns.append(column)
        state = grammar.advance(state, column.tolist())
    ids = torch.stack(columns, dim=1)
    read = layout.read(vocabulary, prompt, ids)
    if "question" not in content or (state is not None and layout.num_rows == 1):
        return
    again = layout.encode(vocabulary, {"question": content["question"], **read})
    if layout.num_rows == 1 and case not in REPEATS_MERGED:
        assert torch.equal(again.ids, torch.cat([prompt.ids, ids], dim=1))


@EVERY
def test_it_is_saved_and_built_again(case: str) -> None:
    layout, vocabulary = build_case(case)
    again = layout_from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.grammar(vocabulary) is layout.grammar(vocabulary)


def test_every_layout_is_among_the_cases() -> None:
    assert {name for name, _, _ in CASES.values()} == set(LAYOUTS)


@EVERY
def test_a_part_of_a_sequence_is_refused(case: str) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=4, asked=3, tokens=3, seed=1)
    ids = layout.encode(vocabulary, content).ids
    for part in (ids[:, 1:], ids[:, :-1], ids[:, :2], ids[:, :0], ids.flip(1)):
        with pytest.raises(InputError, match="one whole sequence"):
            layout.decode(vocabulary, part)


@EVERY
def test_streams_that_do_not_fit_are_refused_in_one_line(case: str) -> None:
    layout, vocabulary = build_case(case)
    other = Vocabulary(
        tokenizer_fingerprint="tokenizer-01", stream_sizes=(*vocabulary.stream_sizes, 9)
    )
    content = random_content(layout, frames=4, asked=3, tokens=3, seed=1)
    with pytest.raises(InputError, match=r"^the layout .* streams, got one of \d+; ") as caught:
        layout.encode(other, content)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="codebooks"):
        layout.stream_sizes((5,) * 7)
    if vocabulary.text_size:
        silent = Vocabulary(
            tokenizer_fingerprint="tokenizer-01", stream_sizes=vocabulary.stream_sizes
        )
        with pytest.raises(InputError, match="needs text"):
            layout.check(silent)


@EVERY
def test_fields_and_units_that_do_not_fit_are_refused(case: str) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=4, asked=3, tokens=3, seed=1)
    with pytest.raises(InputError, match=r"takes \{.*got \{"):
        layout.encode(vocabulary, {})
    units = next(
        field.name for field in layout.fields if field.name in content and field.kind == "units"
    )
    with pytest.raises(InputError, match=r"units int64 \[\d, F\]"):
        layout.encode(vocabulary, {**content, units: content[units].float()})
    with pytest.raises(InputError, match=r"units of stream \d+ in 0\.\.\d+, got 99"):
        layout.encode(vocabulary, {**content, units: content[units] * 0 + 99})


SPOKEN = [case for case in CASES if not case.startswith(("duplex", "coarse-first"))]


@pytest.mark.parametrize("case", SPOKEN)
@FEW
@given(frames=LENGTHS, known=LENGTHS, seed=st.integers(0, 2**31))
def test_speech_by_itself_can_be_scored_and_continued(
    case: str, frames: int, known: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    full = random_content(layout, frames=frames, asked=None, tokens=0, seed=seed)
    if case.startswith("chain"):
        full = {
            "speech": random_content(layout, frames=frames, asked=0, tokens=0, seed=seed)["answer"]
        }
    content = expected(case, {"speech": full["speech"]})
    sequence = layout.encode(vocabulary, content)
    decoded = layout.decode(vocabulary, sequence.ids)
    assert torch.equal(decoded["speech"], content["speech"])
    prompt = layout.prompt(vocabulary, {"speech": content["speech"][:, :known]})
    columns = columns_after(prompt, sequence.ids)
    replay(layout, vocabulary, prompt, columns)
    read = layout.read(vocabulary, prompt, columns)
    assert torch.equal(read["speech"], content["speech"][:, known:])
    assert not read.get("text", torch.zeros(0)).numel()


@FEW
@given(frames=LENGTHS, tokens=LENGTHS, known=LENGTHS, seed=st.integers(0, 2**31))
@pytest.mark.parametrize("case", ["text-parallel", "text-parallel-plain"])
def test_speech_with_all_of_its_text_can_be_continued(
    case: str, frames: int, tokens: int, known: int, seed: int
) -> None:
    layout, vocabulary = build_case(case)
    content = random_content(layout, frames=frames, asked=None, tokens=tokens, seed=seed)
    prompt = layout.prompt(vocabulary, {**content, "speech": content["speech"][:, :known]})
    ids = layout.encode(vocabulary, content).ids
    columns = columns_after(prompt, ids)
    replay(layout, vocabulary, prompt, columns)
    read = layout.read(vocabulary, prompt, columns)
    assert torch.equal(read["speech"], content["speech"][:, known:])
    assert read.keys() == {"speech"}
