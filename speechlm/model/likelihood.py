"""How probable an LM finds sequences and recordings: what every spoken likelihood benchmark needs.

Each cell of a sequence has a probability, given all columns before its own (and, with a depth
transformer, the rows above it), among the ids that its row may hold. A likelihood is a sum of
their natural logarithms. By default every unit and every text token counts 1, and neither marks,
fill nor the end do: so a word scores the same whether the recording stops after it or not.
``weighted`` counts every cell as the loss does, the end included.

Sources:
    Sum and mean per unit: Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588; Lakhotia et
    al. 2021 (GSLM), arXiv:2102.01192. A span: arXiv:2601.06329 (localised likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.grid import LMSequence
from speechlm.layouts.plan import PlannedLayout, merged_by
from speechlm.model.fast_linear import Weights
from speechlm.model.scoring import log_probs
from speechlm.units import Units

if TYPE_CHECKING:
    from speechlm.model.unit_lm import UnitLM

Modality = Literal["units", "text"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Likelihood:
    """How probable an LM finds one sequence, or a part of it; natural logarithms."""

    log_probs: Tensor
    """Of each cell that counts, float32 [R, S]; 0 elsewhere."""
    weights: Tensor
    """How much each cell counts, float32 [R, S]."""
    duration_s: float | None = None
    """Seconds of sound that the part stands for."""

    @property
    def total(self) -> float:
        """The sum, each cell by its weight."""
        return float((self.log_probs.double() * self.weights).sum())

    @property
    def num_units(self) -> float:
        """How many cells count, each by its weight; K for a frame of K streams."""
        return float(self.weights.double().sum())

    @property
    def per_unit(self) -> float:
        """The mean over what counts; NaN where nothing does."""
        return self.total / self.num_units if self.num_units else math.nan

    @property
    def per_second(self) -> float:
        """The sum by seconds of sound, which compares tokenizers of different rates.

        Raises:
            InputError: The duration is not known.
        """
        if self.duration_s is None:
            raise InputError(
                "expected duration_s to score per second, got none; score_recordings knows it"
            )
        return self.total / self.duration_s if self.duration_s else math.nan


def score(
    lm: UnitLM,
    sequences: Sequence[LMSequence],
    *,
    spans: Sequence[tuple[int, int] | None] | None = None,
    modality: Modality | None = None,
    streams: Sequence[int] | None = None,
    weighted: bool = False,
    weights: Weights = "float32",
) -> list[Likelihood]:
    """Score sequences of the LM's layout.

    Args:
        lm: The LM.
        sequences: Whole ones, of any lengths up to the context.
        spans: For each sequence the frames that count, first and one past the last, of what is
            spoken (the answer, where there is a question); None for all of it. Frames are the
            layout's: where it merges repeats, merged ones. Only units are in a span.
        modality: Count only units, or only text.
        streams: Count only units of these streams of the vocabulary.
        weighted: Count by the loss weights: all that they count, marks, fill and ends included,
            unless the part is restricted.
        weights: What the LM computes with; ``bfloat16`` or ``int8`` to see what they lose.

    Returns:
        In the order given.

    Raises:
        ConfigError: int8 weights of an LM that is not on a CPU.
        InputError: Another number of rows, an id that its row cannot hold, a sequence longer than
            ``max_positions``, a span outside of it, an unknown modality or stream.
    """
    _check_count("spans", spans, sequences)
    if modality == "text" and (streams is not None or any(spans or ())):
        raise InputError("expected text, or spans and streams of units, got both")
    row_ids = lm.layout.row_ids(lm.vocabulary)
    allowed = torch.zeros(len(row_ids), lm.vocabulary.size, dtype=torch.bool)
    for row, known in zip(allowed, row_ids, strict=True):
        row[known] = True
    counted = allowed & _chosen(lm, modality, streams)
    if weighted and modality is None and streams is None:
        counted = allowed
    cell_weights = []
    for index, sequence in enumerate(sequences):
        with _naming("sequence", index, sequences):
            _check(lm, sequence, allowed)
            counts = counted.gather(1, sequence.ids)
            span = None if spans is None else spans[index]
            if span is not None:
                counts &= _in_span(lm, sequence, span)
        counts[:, :1] = False  # nothing comes before it to predict it from
        cell_weights.append(counts * sequence.loss_weights if weighted else counts.float())
    ids = [sequence.ids for sequence in sequences]
    wanted = [weight != 0 for weight in cell_weights]
    found = log_probs(lm.decoder, row_ids, ids, wanted, weights)
    return [
        Likelihood(log_probs=cells, weights=weight)
        for cells, weight in zip(found, cell_weights, strict=True)
    ]


def score_recordings(
    lm: UnitLM,
    recordings: Sequence[Units],
    *,
    spans_s: Sequence[tuple[float, float] | None] | None = None,
    streams: Sequence[int] | None = None,
    weighted: bool = False,
    weights: Weights = "float32",
) -> list[Likelihood]:
    """Score recordings on their own, as the LM's layout lays out ``speech``.

    Args:
        lm: The LM.
        recordings: Units with their repeats.
        spans_s: For each recording the seconds that count, from and to, or None for all of it:
            the frames whose middle lies within. Spans side by side add up to the whole. Where
            the layout merges repeats, a unit belongs where it begins.
        streams: As :func:`score` takes them.
        weighted: The same.
        weights: The same.

    Raises:
        FingerprintError: Another tokenizer made the units.
        InputError: As :func:`score` does; or repeats are merged, a span outside of its recording,
            or a layout that takes no speech by itself.
    """
    _check_count("spans_s", spans_s, recordings)
    sequences, spans, durations_s = [], [], []
    for index, units in enumerate(recordings):
        lm.vocabulary.check(units)
        span_s = None if spans_s is None else spans_s[index]
        with _naming("recording", index, recordings):
            sequences.append(lm.layout.encode(lm.vocabulary, {"speech": units.codes}))
            span, duration_s = frames_within(lm, units, span_s)
        spans.append(span)
        durations_s.append(duration_s)
    found = score(lm, sequences, spans=spans, streams=streams, weighted=weighted, weights=weights)
    return [
        replace(one, duration_s=duration_s)
        for one, duration_s in zip(found, durations_s, strict=True)
    ]


def score_span(
    lm: UnitLM, units: Units, found: Likelihood, span_s: tuple[float, float]
) -> Likelihood:
    """What a part of a recording adds to its likelihood, without computing anything again.

    Args:
        lm: The LM that scored it.
        units: Of the recording.
        found: What :func:`score_recordings` gave for all of it.
        span_s: As :func:`score_recordings` takes it.

    Raises:
        InputError: The span is outside of the recording.
    """
    sequence = lm.layout.encode(lm.vocabulary, {"speech": units.codes})
    span, duration_s = frames_within(lm, units, span_s)
    assert span is not None
    inside = _in_span(lm, sequence, span)
    return Likelihood(
        log_probs=found.log_probs, weights=found.weights * inside, duration_s=duration_s
    )


def _check_count(name: str, given: Sequence[object] | None, wanted: Sequence[object]) -> None:
    if given is not None and len(given) != len(wanted):
        raise InputError(f"expected {len(wanted)} {name}, one each, got {len(given)}")


@contextmanager
def _naming(what: str, index: int, among: Sequence[object]) -> Iterator[None]:
    """Say of which of several an error is."""
    try:
        yield
    except InputError as error:
        if len(among) == 1:
            raise
        raise InputError(f"{what} {index}: {error}") from error


def _chosen(lm: UnitLM, modality: Modality | None, streams: Sequence[int] | None) -> Tensor:
    """Which ids count, bool [V]."""
    vocabulary = lm.vocabulary
    known, num_streams = get_args(Modality), len(vocabulary.stream_sizes)
    if modality is not None and modality not in known:
        raise InputError(f"unknown modality {modality!r}; known: {', '.join(known)}")
    if modality == "text" and not vocabulary.text_size:
        raise InputError("expected the modality 'units': this LM has no text")
    if streams is not None and not (streams and set(streams) <= set(range(num_streams))):
        raise InputError(f"expected streams in 0..{num_streams - 1}, got {list(streams)}")
    ranges = [vocabulary.unit_range(stream) for stream in streams or range(num_streams)]
    if modality == "text":
        ranges = [vocabulary.text_range]
    elif modality is None and streams is None:
        ranges.append(vocabulary.text_range)
    chosen = torch.zeros(vocabulary.size, dtype=torch.bool)
    for ids in ranges:
        chosen[ids.start : ids.stop] = True
    return chosen


def _check(lm: UnitLM, sequence: LMSequence, allowed: Tensor) -> None:
    ids, name, most = sequence.ids, lm.layout.name, lm.decoder.config.max_positions
    if sequence.num_rows != len(allowed) or ids.dtype != torch.int64:
        raise InputError(
            f"expected ids int64 [{len(allowed)}, S] of the layout {name!r}, "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    if len(sequence) - 1 > most:  # the last column is predicted, never read
        raise InputError(
            f"expected at most {most} positions (model.max_positions), got {len(sequence) - 1}; "
            "score shorter parts"
        )
    outside = (ids < 0) | (ids >= allowed.shape[1])
    wrong = outside | ~allowed.gather(1, ids.masked_fill(outside, 0))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"expected ids that row {row} of the layout {name!r} may hold, "
            f"got {int(ids[row, column])} in column {column}"
        )


def _in_span(lm: UnitLM, sequence: LMSequence, span: tuple[int, int]) -> Tensor:
    """Which cells hold units of some frames of what is spoken, bool [R, S]."""
    layout, (start, stop) = lm.layout, span
    if not isinstance(layout, PlannedLayout):
        raise InputError(f"the layout {layout.name!r} does not say where its frames are")
    plan, counted = layout.plan(layout.decode(lm.vocabulary, sequence.ids))
    spoken = {field.name for field in layout.fields if field.kind == "units"} - {"question"}
    inside = torch.zeros_like(plan.is_content)
    first = 0  # of a field's elements, which the plan counts through
    for name, field in counted:
        if name in spoken:
            num_frames = field.shape[1]
            if not 0 <= start < stop <= num_frames:
                raise InputError(
                    f"expected a span within frames 0..{num_frames}, got {start}..{stop}"
                )
            held = plan.is_content & (plan.cells >= first) & (plan.cells < first + field.numel())
            frame = (plan.cells - first) % num_frames
            inside |= held & (frame >= start) & (frame < stop)
        first += field.numel()
    return inside


def frames_within(
    lm: UnitLM, units: Units, span_s: tuple[float, float] | None
) -> tuple[tuple[int, int] | None, float]:
    """A span of seconds as one of the layout's frames, and the seconds that those last.

    Raises:
        InputError: It is outside of the recording, or no frame begins in it.
    """
    if span_s is None:
        return None, units.duration_s
    start_s, end_s = span_s
    start = stop = 0
    if 0 <= start_s < end_s < math.inf:
        start, stop = (math.ceil(edge_s * units.frame_rate - 0.5) for edge_s in span_s)
    if not start < stop <= units.num_frames:
        raise InputError(
            f"expected a span of a frame or more within 0..{units.duration_s:g} s, "
            f"got {start_s:g}..{end_s:g} s"
        )
    duration_s = (stop - start) / units.frame_rate
    merged = merged_by(lm.layout, units.codes)
    if merged is None and not units.variable_rate:
        return (start, stop), duration_s
    durations = units.durations if merged is None else merged[1]
    if durations is None:
        raise InputError("expected units with the duration of each, to find a span among them")
    begins = durations.cumsum(0) - durations
    first, past = torch.searchsorted(begins, torch.tensor([start, stop])).tolist()
    if first == past:
        raise InputError(
            f"expected a span in which a unit begins, got {start_s:g}..{end_s:g} s within one"
        )
    return (first, past), duration_s
