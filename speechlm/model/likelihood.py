"""How probable an LM finds sequences and recordings: what every spoken likelihood benchmark needs.

Each cell of a sequence has a probability, given all columns before its own (and, with a depth
transformer, the rows above it). A likelihood is a sum of their natural logarithms. By default
every unit and every text token counts 1, and neither marks, fill nor the end do: so a word
scores the same whether the recording stops after it or not. ``end`` counts the ends too,
``weighted`` counts every cell as the loss does.

Nothing depends on what is scored beside it: sequences of like length share a batch, filled up
on the right, where causal layers do not look.

Sources:
    Sum and mean per unit: Nguyen et al. 2020 (ZeroSpeech 2021), arXiv:2011.11588; Lakhotia et
    al. 2021 (GSLM), arXiv:2102.01192. A span: arXiv:2601.06329 (localised likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn import functional as F

from speechlm.errors import InputError
from speechlm.layouts.grid import LMSequence
from speechlm.layouts.plan import PlannedLayout
from speechlm.model.decoder import Decoder
from speechlm.model.fast import fast_linear, prepare
from speechlm.model.heads import joined_head, local_ids
from speechlm.units import Units, collapse_repeats

if TYPE_CHECKING:
    from speechlm.model.unit_lm import UnitLM

Modality = Literal["units", "text"]

CPU_POSITIONS, GPU_POSITIONS = 2048, 32_768
"""LM positions scored at once: as many as keep the cores busy; more only leave their caches."""
LEAST_FILLED = 0.75
"""No sequence of a batch is shorter than this share of the longest."""
SCORES_AT_ONCE = 2**22
"""Logits held at once, which bounds memory where there is text."""
PACK_FROM = 8192
"""Positions from which packing a decoder's weights for a CPU is won back."""


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
        return sum(self.row_totals)

    @property
    def num_units(self) -> float:
        """How many cells count, each by its weight; K for a frame of K streams."""
        return sum(self.row_units)

    @property
    def row_totals(self) -> tuple[float, ...]:
        """:attr:`total` of each row."""
        return tuple((self.log_probs.double() * self.weights).sum(dim=1).tolist())

    @property
    def row_units(self) -> tuple[float, ...]:
        """:attr:`num_units` of each row."""
        return tuple(self.weights.double().sum(dim=1).tolist())

    @property
    def per_unit(self) -> float:
        """The mean over what counts; NaN where nothing does."""
        return self.total / self.num_units if self.num_units else math.nan

    @property
    def per_second(self) -> float:
        """The sum by seconds of sound, which compares tokenizers of different rates.

        Raises:
            InputError: The duration was not given.
        """
        if self.duration_s is None:
            raise InputError("expected durations_s to score per second, got none")
        return self.total / self.duration_s if self.duration_s else math.nan


def score(
    lm: UnitLM,
    sequences: Sequence[LMSequence],
    *,
    spans: Sequence[tuple[int, int] | None] | None = None,
    modality: Modality | None = None,
    streams: Sequence[int] | None = None,
    end: bool = False,
    weighted: bool = False,
    durations_s: Sequence[float] | None = None,
    positions_at_once: int | None = None,
) -> list[Likelihood]:
    """Score sequences of the LM's layout.

    Args:
        lm: The LM.
        sequences: Whole ones, of any lengths up to the context.
        spans: For each sequence the frames that count, first and one past the last, of what is
            spoken (the answer, where there is a question); None for all of it. Frames are the
            layout's: where it merges repeats, merged ones. Text and ends are in no span.
        modality: Count only units, or only text.
        streams: Count only units of these streams of the vocabulary.
        end: Count the ends too, of those rows that hold anything that counts.
        weighted: Count by the loss weights: all that they count, marks, fill and ends included,
            unless the part is restricted.
        durations_s: Seconds that each part stands for, for :attr:`Likelihood.per_second`.
        positions_at_once: LM positions in a batch, which bounds memory.

    Returns:
        In the order given.

    Raises:
        InputError: Another number of rows, an id that its row cannot hold, a sequence longer than
            ``max_positions``, a span outside of it, an unknown modality or stream.
    """
    for name, given in (("spans", spans), ("durations_s", durations_s)):
        if given is not None and len(given) != len(sequences):
            raise InputError(f"expected {name} for {len(sequences)} sequences, got {len(given)}")
    if positions_at_once is not None and positions_at_once < 1:
        raise InputError(f"expected at least 1 position at once, got {positions_at_once}")
    row_ids = lm.layout.row_ids(lm.vocabulary)
    allowed = _mask([known.tolist() for known in row_ids], lm.vocabulary.size)
    counted = _counted(lm, allowed, modality, streams, end)
    if weighted and modality is None and streams is None:
        counted = allowed
    weights = []
    for index, sequence in enumerate(sequences):
        span = None if spans is None else spans[index]
        try:
            _check(lm, sequence, allowed)
            counts = counted.gather(1, sequence.ids)
            if span is not None:
                counts &= _in_span(lm, sequence, span)
        except InputError as error:
            raise InputError(f"sequence {index}: {error}") from error
        counts[:, :1] = False  # nothing comes before it to predict it from
        weights.append(counts * sequence.loss_weights if weighted else counts.float())
    log_probs = _log_probs(lm, sequences, weights, row_ids, positions_at_once)
    return [
        Likelihood(
            log_probs=log_probs[index],
            weights=weights[index],
            duration_s=None if durations_s is None else durations_s[index],
        )
        for index in range(len(sequences))
    ]


def score_recordings(
    lm: UnitLM,
    recordings: Sequence[Units],
    *,
    spans_s: Sequence[tuple[float, float] | None] | None = None,
    streams: Sequence[int] | None = None,
    end: bool = False,
    weighted: bool = False,
    positions_at_once: int | None = None,
) -> list[Likelihood]:
    """Score recordings on their own, as the LM's layout lays out ``speech``.

    Args:
        lm: The LM.
        recordings: Units with their repeats.
        spans_s: For each recording the seconds that count, from and to, or None for all of it:
            the frames whose middle lies within. Spans side by side add up to the whole. Where
            the layout merges repeats, a unit belongs where it begins.
        streams: As :func:`score` takes them.
        end: The same.
        weighted: The same.
        positions_at_once: The same.

    Raises:
        FingerprintError: Another tokenizer made the units.
        InputError: As :func:`score` does; or repeats are merged, a span outside of its recording,
            or a layout that takes no speech by itself.
    """
    if spans_s is not None and len(spans_s) != len(recordings):
        raise InputError(f"expected spans_s for {len(recordings)} recordings, got {len(spans_s)}")
    sequences, spans, durations_s = [], [], []
    for index, units in enumerate(recordings):
        lm.vocabulary.check(units)
        sequences.append(lm.layout.encode(lm.vocabulary, {"speech": units.codes}))
        span_s = None if spans_s is None else spans_s[index]
        try:
            span, duration_s = _frames(lm, units, span_s)
        except InputError as error:
            raise InputError(f"recording {index}: {error}") from error
        spans.append(span)
        durations_s.append(duration_s)
    return score(
        lm,
        sequences,
        spans=spans,
        streams=streams,
        end=end,
        weighted=weighted,
        durations_s=durations_s,
        positions_at_once=positions_at_once,
    )


def _counted(
    lm: UnitLM,
    allowed: Tensor,
    modality: Modality | None,
    streams: Sequence[int] | None,
    end: bool,
) -> Tensor:
    """Which ids count in each row, bool [R, V]."""
    vocabulary = lm.vocabulary
    known, num_streams = get_args(Modality), len(vocabulary.stream_sizes)
    if modality is not None and modality not in known:
        raise InputError(f"unknown modality {modality!r}; known: {', '.join(known)}")
    if modality == "text" and not vocabulary.text_size:
        raise InputError("expected the modality 'units': this LM has no text")
    if modality == "text" and streams is not None:
        raise InputError("expected text or streams of units, got both")
    if streams is not None and not (streams and set(streams) <= set(range(num_streams))):
        raise InputError(f"expected streams in 0..{num_streams - 1}, got {list(streams)}")
    ranges = [vocabulary.unit_range(stream) for stream in streams or range(num_streams)]
    if modality == "text":
        ranges = [vocabulary.text_range]
    elif modality is None and streams is None:
        ranges.append(vocabulary.text_range)
    counted = allowed & _mask([[id_ for ids in ranges for id_ in ids]], vocabulary.size)
    if end:
        counted[:, vocabulary.end] = counted.any(dim=1)
    return counted


def _mask(rows: Sequence[Sequence[int]], size: int) -> Tensor:
    """Lists of ids as bool [rows, size]."""
    mask = torch.zeros(len(rows), size, dtype=torch.bool)
    for row, ids in zip(mask, rows, strict=True):
        row[torch.tensor(ids, dtype=torch.int64)] = True
    return mask


def _check(lm: UnitLM, sequence: LMSequence, allowed: Tensor) -> None:
    ids, most = sequence.ids, lm.decoder.config.max_positions
    if sequence.num_rows != len(allowed):
        raise InputError(
            f"expected {len(allowed)} rows, as the layout {lm.layout.name!r} has, "
            f"got {sequence.num_rows}"
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
            f"expected ids that row {row} of the layout {lm.layout.name!r} may hold, "
            f"got {int(ids[row, column])} in column {column}"
        )


def _in_span(lm: UnitLM, sequence: LMSequence, span: tuple[int, int]) -> Tensor:
    """Which cells hold units of some frames of what is spoken, bool [R, S]."""
    layout = lm.layout
    if not isinstance(layout, PlannedLayout):
        raise InputError(f"the layout {layout.name!r} does not say where its frames are")
    start, stop = span
    plan, counted = layout.plan(layout.decode(lm.vocabulary, sequence.ids))
    spoken = {field.name for field in layout.fields if field.kind == "units"} - {"question"}
    inside = torch.zeros_like(plan.is_content)
    taken = 0
    for name, field in counted:
        if name in spoken:
            num_frames = field.shape[1]
            if not 0 <= start < stop <= num_frames:
                raise InputError(
                    f"expected a span within frames 0..{num_frames}, got {start}..{stop}"
                )
            element = plan.cells - taken
            frame = element % num_frames
            held = plan.is_content & (element >= 0) & (element < field.numel())
            inside |= held & (frame >= start) & (frame < stop)
        taken += field.numel()
    return inside


def _frames(
    lm: UnitLM, units: Units, span_s: tuple[float, float] | None
) -> tuple[tuple[int, int] | None, float]:
    """A span of seconds as one of the layout's frames, and the seconds that those last."""
    if span_s is None:
        return None, units.duration_s
    start_s, end_s = span_s
    start, stop = (math.ceil(edge * units.frame_rate - 0.5) for edge in span_s)
    if not (0 <= start < stop <= units.num_frames and start_s >= 0):
        raise InputError(
            f"expected a span of a frame or more within 0..{units.duration_s:g} s, "
            f"got {start_s:g}..{end_s:g} s"
        )
    duration_s = (stop - start) / units.frame_rate
    if not getattr(lm.layout, "collapse", False):
        return (start, stop), duration_s
    begins = collapse_repeats(units.codes)[1].cumsum(0).roll(1)
    begins[0] = 0
    first, past = torch.searchsorted(begins, torch.tensor([start, stop])).tolist()
    if first == past:
        raise InputError(
            f"expected a span in which a unit begins, got {start_s:g}..{end_s:g} s within one"
        )
    return (first, past), duration_s


def _log_probs(
    lm: UnitLM,
    sequences: Sequence[LMSequence],
    weights: Sequence[Tensor],
    row_ids: Sequence[Tensor],
    positions_at_once: int | None,
) -> list[Tensor]:
    """Of each cell with a weight, float32 [R, S] a sequence; 0 elsewhere."""
    results = [torch.zeros_like(weight) for weight in weights]
    wanted = [weight != 0 for weight in weights]
    # What follows the last cell that counts need not be read.
    lengths = [int(one.any(dim=0).nonzero().max()) if bool(one.any()) else 0 for one in wanted]
    if positions_at_once is None:
        positions_at_once = CPU_POSITIONS if lm.device.type == "cpu" else GPU_POSITIONS
    rows = [row for row in range(len(row_ids)) if any(bool(one[row].any()) for one in wanted)]
    with torch.inference_mode():
        scorer = _Scorer(lm.decoder, row_ids, rows, num_positions=sum(lengths))
        for chosen in _batches(lengths, positions_at_once):
            shape = (len(chosen), len(row_ids), lengths[chosen[-1]])
            ids = torch.full(shape, lm.vocabulary.pad)
            targets, asked = ids.clone(), torch.zeros(shape, dtype=torch.bool)
            for at, index in enumerate(chosen):
                length = lengths[index]
                ids[at, :, :length] = sequences[index].ids[:, :length]
                targets[at, :, :length] = sequences[index].ids[:, 1 : length + 1]
                asked[at, :, :length] = wanted[index][:, 1 : length + 1]
            found = scorer(ids, targets, asked)
            for at, index in enumerate(chosen):
                length = lengths[index]
                results[index][:, 1 : length + 1] = found[at, :, :length]
    return results


def _batches(lengths: Sequence[int], positions: int) -> Iterator[list[int]]:
    """Indices of like lengths, the shortest first within a batch; those of length 0 are left."""
    order = sorted((at for at, n in enumerate(lengths) if n), key=lambda at: lengths[at])
    while order:
        longest = lengths[order[-1]]
        count = 1
        while (
            count < min(len(order), positions // longest)
            and lengths[order[-count - 1]] >= LEAST_FILLED * longest
        ):
            count += 1
        yield order[-count:]
        order = order[:-count]


class _Scorer:
    """A decoder with its heads, for log probabilities of known columns.

    Args:
        rows: Those of which any cell is asked for.
        num_positions: To be read in all.
    """

    def __init__(
        self, decoder: Decoder, row_ids: Sequence[Tensor], rows: list[int], *, num_positions: int
    ) -> None:
        weight = decoder.model.embed_tokens.weight
        packs = weight.device.type == "cpu" and weight.dtype == torch.float32
        packs = packs and num_positions >= PACK_FROM
        self._decoder = prepare(decoder) if packs else decoder
        self._depth = self._decoder.depth
        self._row_ids = [known.to(weight.device) for known in row_ids]
        self._rows = rows if self._depth is None else list(range(len(row_ids)))
        of_body = self._rows if self._depth is None else self._rows[: self._depth.first_row]
        self._sizes = [len(row_ids[row]) for row in of_body]
        read = row_ids if self._depth is not None else [row_ids[row] for row in of_body]
        head = joined_head(decoder, read)
        self._head = fast_linear(head, "float32") if packs and isinstance(head, Linear) else head
        self._columns_at_once = SCORES_AT_ONCE // max(sum(map(len, self._row_ids)), 1) or 1

    def __call__(self, ids: Tensor, targets: Tensor, asked: Tensor) -> Tensor:
        """Score what is asked for.

        Args:
            ids: The columns read, int64 [B, R, S].
            targets: Those that follow, int64 [B, R, S].
            asked: Which of their cells, bool [B, R, S].

        Returns:
            float32 [B, R, S] on the CPU; 0 where not asked for.
        """
        device = self._decoder.device
        select = asked.any(dim=1).flatten().nonzero()[:, 0]
        columns = targets.transpose(1, 2).flatten(0, 1)[select].to(device)
        hidden = self._decoder.hidden(ids.to(device), select=select.to(device))
        local = local_ids(columns, self._row_ids)
        parts = zip(
            hidden.split(self._columns_at_once), local.split(self._columns_at_once), strict=True
        )
        scores = torch.cat([self._score(*part) for part in parts]).cpu()
        found = torch.zeros(asked.shape[0] * asked.shape[2], asked.shape[1])
        found[select] = scores
        return found.view(asked.shape[0], asked.shape[2], -1).transpose(1, 2) * asked

    def _score(self, hidden: Tensor, local: Tensor) -> Tensor:
        """States [N, D] and the columns that follow, indices in their rows' ids: float [N, R]."""
        logits: list[Tensor] = []
        if self._head is not None:
            logits += self._head(hidden).split(self._sizes, dim=1)
        if self._depth is not None:
            table = self._decoder.model.embed_tokens.weight
            logits += self._depth(hidden, local, self._row_ids, table)
        scores = torch.zeros(local.shape, device=hidden.device)
        for row, of_row in zip(self._rows, logits, strict=True):
            wanted = local[:, row]
            scores[:, row] = -F.cross_entropy(of_row.float(), wanted, reduction="none")
        return scores
