"""Scoring: by every layout and head, alone and together, whole and in part."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import CASES, NUM_UNITS, build_case, random_content
from small_lm import shared_lm, small_lm
from torch import Tensor

from speechlm.errors import FingerprintError, InputError
from speechlm.layouts.grid import LMSequence
from speechlm.model import scoring
from speechlm.model.decoder import Decoder
from speechlm.model.fast_linear import Weights
from speechlm.model.likelihood import Likelihood, score, score_recordings
from speechlm.model.unit_lm import UnitLM
from speechlm.units import Units

HEADED_CASES = [(case, depth) for case in CASES for depth in (False, True)]
WITH_TEXT = [case for case in CASES if build_case(case)[1].text_size]
ALONE = ["flat", "flat-collapsed", "flattened", "parallel", "delay", "coarse-first", "grouped"]
"""Cases that take recordings by themselves."""
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def sequences_for(lm: UnitLM, lengths: list[int], seed: int = 0) -> list[LMSequence]:
    """Sequences of so many frames, every other with a question where the layout takes them."""
    return [
        lm.layout.encode(
            lm.vocabulary,
            random_content(
                lm.layout,
                frames=length,
                asked=length if index % 2 else None,
                tokens=length,
                seed=seed + index,
            ),
        )
        for index, length in enumerate(lengths)
    ]


def recording(length: int, num_codebooks: int = 1, seed: int = 0) -> Units:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(NUM_UNITS, (num_codebooks, length), generator=generator)
    return Units(codes=codes, frame_rate=12.5, fingerprint="tokenizer-01")


def slow_log_probs(lm: UnitLM, ids: Tensor) -> Tensor:
    """Of every cell but the first column's, one by one: float32 [R, S]."""
    row_ids = lm.layout.row_ids(lm.vocabulary)
    found = torch.zeros(ids.shape)
    if ids.shape[1] < 2:
        return found
    with torch.inference_mode():
        hidden = lm.decoder.hidden(ids[None, :, :-1])[0]
        for column in range(1, ids.shape[1]):
            state, before = hidden[column - 1 : column], None
            everything = lm.decoder.logits(state)[0]
            if lm.decoder.depth is not None:
                table = lm.decoder.model.embed_tokens.weight
                frame = lm.decoder.depth.begin(state, row_ids, table)
            for row, known in enumerate(row_ids):
                (local,) = (known == ids[row, column]).nonzero()
                scores = everything[known]
                if lm.decoder.depth is not None and row >= lm.decoder.depth.first_row:
                    scores = lm.decoder.depth.step(frame, before)[0]
                found[row, column] = scores.log_softmax(dim=0)[local]
                before = local
    return found


def assert_same(found: list[Likelihood], expected: list[Likelihood]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, **CLOSE)
        assert torch.equal(one.weights, other.weights)
        assert one.total == pytest.approx(other.total, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("case", "depth"), HEADED_CASES)
def test_a_score_is_the_sum_of_log_probabilities_of_what_rows_may_hold(
    case: str, depth: bool
) -> None:
    lm = shared_lm(case, depth)
    sequences = sequences_for(lm, [0, 1, 4, 0])
    plain, weighted = score(lm, sequences), score(lm, sequences, weighted=True)
    for sequence, one, by_loss in zip(sequences, plain, weighted, strict=True):
        expected = slow_log_probs(lm, sequence.ids)
        counts = (sequence.ids >= lm.vocabulary.first_text).float()  # tokens, then units
        torch.testing.assert_close(one.weights, counts)
        torch.testing.assert_close(one.log_probs, expected * counts, **CLOSE)
        assert one.total == pytest.approx(float((expected * counts).sum()), rel=1e-5, abs=1e-5)
        total = float((expected * sequence.loss_weights).sum())
        assert by_loss.total == pytest.approx(total, rel=1e-5, abs=1e-5)
        assert one.log_probs.dtype == one.weights.dtype == torch.float32


@pytest.mark.parametrize(("case", "depth"), HEADED_CASES)
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_scores_are_the_same_alone_and_in_any_batch(
    case: str, depth: bool, data: st.DataObject
) -> None:
    lm = shared_lm(case, depth)
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=6))
    order = data.draw(st.permutations(range(len(lengths))))
    weighted = data.draw(st.booleans())
    sequences = sequences_for(lm, lengths, seed=data.draw(st.integers(0, 9)))
    alone = [score(lm, [sequence], weighted=weighted)[0] for sequence in sequences]
    assert_same(score(lm, sequences, weighted=weighted), alone)
    turned = score(lm, [sequences[at] for at in order], weighted=weighted)
    assert_same(turned, [alone[at] for at in order])


def test_a_depth_transformer_may_leave_the_first_row_to_the_body() -> None:
    lm = small_lm("parallel", depth=True)
    assert lm.decoder.config.depth is not None
    depth = replace(lm.decoder.config.depth, first_from_body=True)
    decoder = Decoder(replace(lm.decoder.config, depth=depth, tie_embeddings=True))
    lm = UnitLM(decoder, lm.vocabulary, lm.layout)
    sequences = sequences_for(lm, [6, 3])
    for sequence, found in zip(sequences, score(lm, sequences), strict=True):
        expected = slow_log_probs(lm, sequence.ids) * found.weights
        torch.testing.assert_close(found.log_probs, expected, **CLOSE)


@pytest.mark.parametrize("depth", [False, True])
def test_batches_and_packed_weights_change_nothing(
    depth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = shared_lm("parallel", depth)
    sequences = sequences_for(lm, [9, 0, 31, 30, 2, 1, 28, 17, 31])
    expected = score(lm, sequences)
    read = []
    hidden = type(lm.decoder).hidden
    monkeypatch.setattr(
        type(lm.decoder),
        "hidden",
        lambda self, ids, **more: read.append(ids.shape) or hidden(self, ids, **more),
    )
    monkeypatch.setattr(scoring, "CPU_POSITIONS", 64)
    monkeypatch.setattr(scoring, "SCORES_AT_ONCE", 100)
    assert_same(score(lm, sequences), expected)
    assert len(read) > 3
    assert all(batch == 1 or batch * length <= 64 for batch, _, length in read)
    monkeypatch.setattr(scoring, "PACK_FROM", 1)
    assert_same(score(lm, sequences), expected)


def test_what_follows_the_last_cell_that_counts_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = shared_lm("flat")
    (sequence,) = sequences_for(lm, [30])
    whole, (early,) = score(lm, [sequence])[0], score(lm, [sequence], spans=[(2, 5)])
    assert early.total == pytest.approx(float(whole.log_probs[0, 3:6].sum()), rel=1e-5)
    read = []
    hidden = type(lm.decoder).hidden
    monkeypatch.setattr(
        type(lm.decoder),
        "hidden",
        lambda self, ids, **more: read.append(ids.shape) or hidden(self, ids, **more),
    )
    score(lm, [sequence], spans=[(2, 5)])
    assert read == [(1, 1, 5)]


@pytest.mark.parametrize(("case", "depth"), [("flat", False), ("text-parallel", True)])
def test_an_lm_in_bfloat16_gives_float32_scores(case: str, depth: bool) -> None:
    lm = small_lm(case, depth=depth)
    sequences = sequences_for(lm, [5, 1, 0])
    expected = score(lm, sequences)
    lm.decoder.bfloat16()
    for one, other in zip(score(lm, sequences), expected, strict=True):
        assert one.log_probs.dtype == torch.float32
        # These weights are large, to make scores differ; bfloat16 holds three digits.
        assert one.total == pytest.approx(other.total, rel=0.2)


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=4)
@given(frames=st.integers(2, 6), cut=st.integers(1, 5), seed=st.integers(0, 9))
def test_spans_count_the_units_of_their_frames_and_add_up(
    case: str, frames: int, cut: int, seed: int
) -> None:
    lm = shared_lm(case)
    content = random_content(lm.layout, frames=frames, asked=2, tokens=3, seed=seed)
    sequence = lm.layout.encode(lm.vocabulary, content)
    said = [name for name in ("speech", "answer", "self", "other") if name in content]
    content = lm.layout.decode(lm.vocabulary, sequence.ids)
    frames = content[said[0]].shape[1]  # fewer where repeats are merged
    cut = min(cut, frames - 1)

    whole, *parts = (
        score(lm, [sequence], spans=[span])[0]
        for span in ([(0, frames), (0, cut), (cut, frames)] if cut else [(0, frames)] * 2)
    )
    torch.testing.assert_close(sum(part.log_probs for part in parts), whole.log_probs, **CLOSE)
    assert torch.equal(sum(part.weights for part in parts), whole.weights)
    if lm.layout.name == "merged":  # what is the same as before is not said
        assert 0 < whole.num_units <= sum(content[name].numel() for name in said)
    else:
        assert whole.num_units == sum(content[name].numel() for name in said)
    if "question" not in content:
        (units,) = score(lm, [sequence], modality="units")
        assert torch.equal(units.weights, whole.weights)

    if not getattr(lm.layout, "collapse", False):
        others = {name: content[name].clone() for name in said}
        for codes in others.values():  # another unit in every stream of one frame
            codes[:, cut] = (codes[:, cut] + 1) % NUM_UNITS
        changed = lm.layout.encode(lm.vocabulary, {**content, **others}).ids != sequence.ids
        (frame,) = score(lm, [sequence], spans=[(cut, cut + 1)])
        assert torch.equal(frame.weights > 0, changed)


@pytest.mark.parametrize("case", CASES)
def test_modalities_and_streams_add_up_to_all(case: str) -> None:
    lm = shared_lm(case)
    sequences = sequences_for(lm, [6, 3, 0])
    everything, units = score(lm, sequences), score(lm, sequences, modality="units")
    parts = [units]
    if case in WITH_TEXT:
        parts.append(score(lm, sequences, modality="text"))
    streams = range(len(lm.vocabulary.stream_sizes))
    by_stream = [score(lm, sequences, streams=[stream]) for stream in streams]
    for index, whole in enumerate(everything):
        for wanted, pieces in ((whole, parts), (units[index], by_stream)):
            weights = sum(piece[index].weights for piece in pieces)
            assert torch.equal(weights, wanted.weights)
            total = sum(piece[index].total for piece in pieces)
            assert total == pytest.approx(wanted.total, rel=1e-5, abs=1e-5)


def test_means_are_by_what_counts_and_by_seconds() -> None:
    lm = shared_lm("parallel")
    units = recording(10, num_codebooks=3)
    whole, part = score_recordings(lm, [units, units], spans_s=[None, (0.1, 0.4)])
    assert whole.num_units == 30
    assert whole.duration_s == 0.8
    assert whole.per_unit == pytest.approx(whole.total / 30)
    assert whole.per_second == pytest.approx(whole.total / 0.8)
    # Frames of 80 ms whose middle lies between 100 and 400 ms: 1 to 4.
    assert part.num_units == 3 * 4
    assert part.duration_s == pytest.approx(0.32)
    assert part.total == pytest.approx(float(whole.log_probs[:, 2:6].double().sum()), rel=1e-5)
    (first,) = score_recordings(lm, [units], streams=[0])
    assert first.per_unit == pytest.approx(first.total / 10)
    (nothing,) = score_recordings(lm, [recording(0, num_codebooks=3)])
    assert (nothing.total, nothing.num_units) == (0, 0)
    assert math.isnan(nothing.per_unit)
    assert math.isnan(nothing.per_second)
    assert score_recordings(lm, []) == []
    sequences = sequences_for(lm, [3])
    with pytest.raises(InputError, match="expected duration_s to score per second"):
        score(lm, sequences)[0].per_second  # noqa: B018


@pytest.mark.parametrize("case", ALONE)
@settings(deadline=None, max_examples=5)
@given(
    length=st.integers(3, 12),
    edges=st.lists(st.integers(1, 95), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 9),
)
def test_spans_of_seconds_side_by_side_add_up(
    case: str, length: int, edges: list[int], seed: int
) -> None:
    lm = shared_lm(case)
    units = recording(length, CASES[case][2], seed)
    end_s = units.duration_s
    marks = [0.0, *(edge / 100 * end_s for edge in sorted(edges)), end_s]
    parts = []
    for span in itertools.pairwise(marks):
        with contextlib.suppress(InputError):  # less than a frame, or nothing but one long unit
            parts += score_recordings(lm, [units], spans_s=[span])
    (whole,) = score_recordings(lm, [units])
    assert sum(part.total for part in parts) == pytest.approx(whole.total, rel=1e-4)
    assert sum(part.num_units for part in parts) == whole.num_units
    if not getattr(lm.layout, "collapse", False):
        assert sum(part.duration_s for part in parts) == pytest.approx(end_s)


def test_merged_repeats_belong_where_they_begin() -> None:
    lm = shared_lm("flat-collapsed")
    codes = torch.tensor([[3, 3, 3, 1, 1, 2, 4, 4]])
    units = replace(recording(8), codes=codes)
    whole, part = score_recordings(lm, [units] * 2, spans_s=[None, (0.08, 0.48)])
    assert whole.num_units == 4
    assert torch.equal(part.weights[0], torch.tensor([0.0, 0, 1, 1, 0, 0]))  # the units 1 and 2
    assert part.duration_s == pytest.approx(0.4)
    with pytest.raises(InputError, match=r"a unit begins, got 0.08..0.2 s within one"):
        score_recordings(lm, [units], spans_s=[(0.08, 0.2)])


def test_a_layout_of_other_fields_scores_no_recordings() -> None:
    with pytest.raises(InputError, match=r"takes \{self, other\}.* got \{speech\}"):
        score_recordings(shared_lm("duplex-pairs"), [recording(4)])


@pytest.mark.parametrize(
    ("span", "said"),
    [((0, 5), "frames 0..4, got 0..5"), ((2, 2), "got 2..2"), ((-1, 2), "got -1..2")],
)
def test_a_span_outside_is_refused(span: tuple[int, int], said: str) -> None:
    lm = shared_lm("flat")
    sequences = [lm.layout.encode(lm.vocabulary, {"speech": recording(4).codes})]
    with pytest.raises(InputError, match=f"expected a span .*{said}"):
        score(lm, sequences, spans=[span])
    with pytest.raises(InputError, match=r"^sequence 1: expected a span"):
        score(lm, sequences * 2, spans=[None, span])


@pytest.mark.parametrize("span_s", [(0.0, 0.5), (-0.1, 0.2), (0.2, 0.1), (0.05, 0.1), (0.1, 1e400)])
def test_a_span_of_seconds_outside_is_refused(span_s: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"a frame or more within 0..0.32 s, got .*\.\..* s$"):
        score_recordings(shared_lm("flat"), [recording(4)], spans_s=[span_s])
    with pytest.raises(InputError, match=r"^recording 1: expected a span"):
        score_recordings(shared_lm("flat"), [recording(4)] * 2, spans_s=[None, span_s])


def grid(rows: list[list[int]], dtype: torch.dtype = torch.int64) -> LMSequence:
    ids = torch.tensor(rows, dtype=dtype)
    return LMSequence(ids=ids, loss_weights=torch.ones(ids.shape))


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        (grid([[4, 7]]), r"expected ids int64 \[3, S\] of the layout 'parallel', got .*\[1, 2\]"),
        (grid([[4]] * 3, torch.int32), "got torch.int32"),
        (
            grid([[4, 7], [4, 12], [4, 12]]),
            "row 2 of the layout 'parallel' may hold, got 12 in col",
        ),
        (grid([[4, -1], [4, 12], [4, 17]]), "that row 0 .* got -1 in column 1"),
        (grid([[4, 22], [4, 12], [4, 17]]), "that row 0 .* got 22 in column 1"),
        (grid([[4] * 66] * 3), r"at most 64 positions \(model.max_positions\), got 65"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(sequence: LMSequence, said: str) -> None:
    with pytest.raises(InputError, match=said):
        score(shared_lm("parallel"), [sequence])


def test_a_sequence_as_long_as_the_context_is_scored() -> None:
    lm = shared_lm("parallel")
    found = score(lm, [grid([[4] + [7] * 64, [4] + [12] * 64, [4] + [17] * 64])])
    assert found[0].num_units == 3 * 64


@pytest.mark.parametrize(
    ("case", "options", "said"),
    [
        ("flat", {"modality": "video"}, "unknown modality 'video'; known: units, text"),
        ("flat", {"modality": "text"}, "expected the modality 'units': this LM has no text"),
        ("parallel", {"streams": [3]}, r"expected streams in 0..2, got \[3\]"),
        ("parallel", {"streams": []}, r"expected streams in 0..2, got \[\]"),
        ("chain", {"modality": "text", "streams": [0]}, "text, or spans and streams of units"),
        ("chain", {"modality": "text", "spans": [(0, 1)]}, "text, or spans and streams of units"),
        ("flat", {"spans": [None, None]}, "expected 1 spans, one each, got 2"),
    ],
)
def test_a_part_that_there_is_not_is_refused(
    case: str, options: dict[str, object], said: str
) -> None:
    lm = shared_lm(case)
    with pytest.raises(InputError, match=said):
        score(lm, sequences_for(lm, [2]), **options)  # type: ignore[arg-type]


def test_units_of_another_tokenizer_or_merged_ones_are_refused() -> None:
    lm = shared_lm("flat")
    with pytest.raises(FingerprintError, match="'tokenizer-01', but 'another' was given"):
        score_recordings(lm, [replace(recording(4), fingerprint="another")])
    with pytest.raises(InputError, match="got merged ones"):
        score_recordings(lm, [recording(4).collapse()])
    with pytest.raises(InputError, match="expected 1 spans_s, one each, got 0"):
        score_recordings(lm, [recording(4)], spans_s=[])


@pytest.mark.parametrize(("case", "depth"), [("flat", False), ("parallel", False), ("delay", True)])
@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_other_weights_lose_a_little_and_the_same_in_any_batch(
    case: str, depth: bool, weights: Weights
) -> None:
    lm = shared_lm(case, depth)
    sequences = sequences_for(lm, [9, 3, 6])
    plain, found = score(lm, sequences), score(lm, sequences, weights=weights)
    for exact, one in zip(plain, found, strict=True):
        difference = (one.log_probs - exact.log_probs).abs()
        assert 0 < float(difference.max()) < 0.2
    if weights == "int8":  # sums of integers are exact; bfloat16's rounding depends on shapes
        assert_same(found, [score(lm, [one], weights=weights)[0] for one in sequences])
