"""The decoding engine: requests join and leave a running batch, each as if it were alone.

A step of the model takes the next positions of every running sequence at once, without
padding: a chunk of a prompt beside single positions of sequences that are being continued. What
comes out of a request depends on nothing but the LM, the prompt, the sampling and the seed.

A *live* sample has rows that come from outside as time goes on: what another speaker says. Its
own rows of a column are drawn from the columns before it; it is read on once its live rows of
that column were given (:meth:`Engine.give`), and waits until then without holding up others.

Sources:
    Continuous batching: Yu et al. 2022 (Orca). Prompts in chunks: Agrawal et al. 2023,
    arXiv:2308.16369. Guidance: Ho and Salimans 2022, arXiv:2207.12598, as Sanchez et al. 2023,
    arXiv:2306.17806, use it. Contexts without end: Xiao et al. 2023, arXiv:2309.17453.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation.alone import PART, AloneReader, dropped
from speechlm.generation.graphs import GreedyHead, StaticReader, recorder_for
from speechlm.generation.ready import get_ready
from speechlm.generation.request import (
    MAX_BATCH,
    SINKS,
    Request,
    capacity_of,
    check_cells,
    check_request,
    positions_of,
    prompts_of,
)
from speechlm.generation.sampling import (
    BFLOAT16_TOLERANCE,
    TOLERANCE,
    choose,
    penalize,
    seeded_noise,
)
from speechlm.layouts.plan import END, PAD
from speechlm.model.cache import BLOCK, KVCache, Region
from speechlm.model.fast_linear import Weights
from speechlm.model.heads import local_ids
from speechlm.model.unit_lm import UnitLM

PREFILL_CHUNK = 512
"""Positions of a prompt that are read in one step, counted from the prompt's own start."""
GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """One column of one sample."""

    ticket: int
    column: tuple[int, ...]
    """Joint ids, R; -1 in live rows."""
    finished: bool


@dataclass(kw_only=True, slots=True, eq=False)
class _Branch:
    """A sequence in the cache: the conditioned one, or the other that guidance needs."""

    prompt: Tensor
    """int64 [R, S]."""
    region: Region
    num_read: int = 0
    """Columns read, those forgotten since included."""
    state: Tensor | None = None
    """What the model made of the last column of a prompt read whole, float [1, D]."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Sample:
    ticket: int
    request: Request
    generator: torch.Generator
    branches: list[_Branch]
    state: Hashable
    columns: list[tuple[int, ...]] = field(default_factory=list)
    """Drawn; of a live sample with a window, all (prompt included) that is not settled."""
    num_drawn: int = 0
    heard: deque[tuple[int, ...]] | None = None
    """Live cells of columns from the last drawn one on; None where nothing is live."""
    waits: bool = False
    """Whether the last column lacks its live cells."""
    settled: AloneReader | None = None
    """Has read, alone, what came before ``columns``."""
    seen: list[Tensor] | None = None
    """Which ids came in each row, bool [V_r] each; kept only for a repetition penalty."""


class Engine:
    """Runs requests through one LM.

    >>> engine = Engine(lm, num_positions=4096)  # doctest: +SKIP
    >>> tickets = engine.add(Request(prompt=prompt))  # doctest: +SKIP
    >>> while engine.busy:  # doctest: +SKIP
    ...     for drawn in engine.step():
    ...         print(drawn.ticket, drawn.column)
    """

    def __init__(
        self,
        lm: UnitLM,
        *,
        num_positions: int,
        max_batch: int = MAX_BATCH,
        weights: Weights = "float32",
    ) -> None:
        """Get an LM ready to decode.

        Args:
            lm: Its decoder's weights must not change as long as this engine runs; a later one
                takes them as they are then.
            num_positions: LM positions that all running sequences hold together.
            max_batch: Sequences that run at once; further ones wait.
            weights: As :func:`speechlm.model.fast.prepare` takes them.
        """
        self.lm = lm
        ready = get_ready(lm, weights)
        self._decoder = ready.decoder
        self._sampler = ready.sampler
        self._row_ids = ready.row_ids
        self._barriers = ready.barriers
        self._grammar = lm.layout.grammar(lm.vocabulary)
        self._tolerance = TOLERANCE if ready.dtype == torch.float32 else BFLOAT16_TOLERANCE
        self._dtype = ready.dtype
        record = recorder_for(lm.device)
        spare = 0 if record is None else BLOCK  # what the static reader takes
        self._cache = KVCache(
            self._decoder.config, num_positions + spare, device=lm.device, dtype=ready.dtype
        )
        self._num_positions = self._cache.num_positions - spare
        self._static: StaticReader | None = None
        self._greedy: Callable[[Tensor, list[int]], tuple[Tensor, Tensor]] | None = None
        """Chooses the most probable id where there is but one row: fewer operations."""
        rows = len(self._row_ids)
        if rows == 1 and ready.head is not None:
            self._greedy = functools.partial(
                _most_probable, ready.head, self._row_ids[0], ready.barriers[0], self._tolerance
            )
        if record is not None:
            self._static = StaticReader(self._decoder, self._cache, rows, record)
            if rows == 1 and ready.head is not None:
                self._greedy = GreedyHead(
                    ready.head, self._row_ids[0], ready.barriers[0], self._tolerance, record
                ).choose
        self._max_batch = max_batch
        self._waiting: deque[tuple[Request, dict[int, int]]] = deque()
        """Requests, and the seed of each ticket that is not cancelled."""
        self._reading: deque[list[_Sample]] = deque()
        """Groups of samples whose common prompt is being read."""
        self._running: list[_Sample] = []
        self._live: dict[int, tuple[int, deque[tuple[int, ...]]]] = {}
        """Of each live ticket the number of its live rows, and cells that were not read yet."""
        self._full = False
        """Whether what waits must wait until something ends."""
        self._next_ticket = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything: not where all there is waits to be given its cells."""
        if self._reading or (self._waiting and not self._full):
            return True
        return any(not sample.waits or sample.heard for sample in self._running)

    def add(self, request: Request) -> list[int]:
        """Queue a request; gives a ticket a sample.

        Raises:
            InputError: A prompt has other rows than the layout, ids outside of the vocabulary,
                leaves no room within the context, or is larger than the whole cache; guidance
                lacks its prompt; or there is no seed, or one that is no number of 64 bits.
        """
        self._check(request)
        first = self._next_ticket
        self._next_ticket += len(request.seeds)
        tickets = range(first, self._next_ticket)
        self._waiting.append((request, dict(zip(tickets, request.seeds, strict=True))))
        if request.num_live_rows:
            self._live |= {ticket: (request.num_live_rows, deque()) for ticket in tickets}
        return list(tickets)

    def give(self, ticket: int, cells: Tensor) -> None:
        """Say what the live rows of a sample hold in its next columns.

        Args:
            ticket: Of a live sample; one that has ended is let pass.
            cells: Joint ids, int64 [num_live_rows, n], n >= 0, from the first column after the
                prompt on. :class:`speechlm.layouts.live.OtherSpeaker` makes them of units.

        Raises:
            InputError: Other rows, or ids that the rows cannot hold; nothing of it is taken.
        """
        if ticket not in self._live:
            return
        num_live_rows, heard = self._live[ticket]
        check_cells(cells, self._row_ids[-num_live_rows:])
        heard.extend(tuple(column) for column in cells.T.tolist())

    def cancel(self, ticket: int) -> None:
        """Forget a sample, wherever it stands; a ticket that has ended is let pass."""
        self._live.pop(ticket, None)
        self._full = False
        for _, tickets in self._waiting:
            tickets.pop(ticket, None)
        self._waiting = deque(waiting for waiting in self._waiting if waiting[1])
        for group in [*self._reading, self._running]:
            for sample in [sample for sample in group if sample.ticket == ticket]:
                group.remove(sample)
                self._release(sample)
        self._reading = deque(group for group in self._reading if group)

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Run the model once and give every column that was drawn."""
        self._admit()
        rows: list[tuple[_Branch, Tensor]] = []
        running = [sample for sample in self._running if _complete(sample)]
        for sample in running:
            last = torch.tensor(sample.columns[-1])[:, None]
            for branch in sample.branches:
                self._make_room(sample, branch)
                rows.append((branch, last))
        group = self._reading[0] if self._reading else None
        if group is not None:
            for branch in group[0].branches:
                rest = branch.prompt[:, branch.num_read :]
                if rest.shape[1]:
                    rows.append((branch, rest[:, :PREFILL_CHUNK]))
        if not rows:
            return []
        hidden = self._read(rows)
        states = hidden[: sum(len(sample.branches) for sample in running)]
        if group is not None and all(branch.state is not None for branch in group[0].branches):
            self._reading.popleft()
            for sample in group[1:]:
                for mine, read in zip(sample.branches, group[0].branches, strict=True):
                    self._cache.copy(read.region, mine.region)
                    mine.num_read = read.num_read
            read_whole = [branch.state for branch in group[0].branches if branch.state is not None]
            states = torch.cat([states, *(read_whole * len(group))])
            self._running += group
            running += group
        return self._draw(running, states) if running else []

    def run(self, request: Request) -> Iterator[tuple[int, ...]]:
        """Give the columns of one request's only sample as they are drawn.

        Other requests go on beside it, but what they draw is lost: for one caller alone.
        """
        if len(request.seeds) != 1:
            raise InputError(f"expected one seed to run alone, got {len(request.seeds)}")
        (ticket,) = self.add(request)
        try:
            while True:
                for drawn in self.step():
                    if drawn.ticket == ticket:
                        yield drawn.column
                        if drawn.finished:
                            return
        finally:
            self.cancel(ticket)

    def _check(self, request: Request) -> None:
        check_request(self.lm, request)
        needed = positions_of(self.lm, request)
        if needed > self._num_positions:
            raise InputError(
                f"expected a request of at most {self._num_positions} LM positions in all "
                f"its samples, which is what the cache holds, got {needed}"
            )
        if len(request.seeds) > self._max_batch:
            raise InputError(
                f"expected at most {self._max_batch} samples, got {len(request.seeds)}"
            )

    def _admit(self) -> None:
        self._full = False
        while self._waiting:
            request, tickets = self._waiting[0]
            count = len(self._running) + sum(map(len, self._reading)) + len(tickets)
            if count > self._max_batch and (self._running or self._reading):
                self._full = True
                return
            prompts = prompts_of(request)
            regions: list[Region] = []
            for _ in tickets:
                for prompt in prompts:
                    region = self._cache.reserve(capacity_of(self.lm, prompt, request.sampling))
                    if region is None:  # it waits until others have ended
                        for taken in regions:
                            self._cache.release(taken)
                        self._full = True
                        return
                    regions.append(region)
            self._waiting.popleft()
            state = request.prompt.state
            self._reading.append(
                [
                    _Sample(
                        ticket=ticket,
                        request=request,
                        generator=torch.Generator().manual_seed(seed),
                        branches=[
                            _Branch(prompt=prompt.ids, region=region)
                            for prompt, region in zip(
                                prompts, regions[index * len(prompts) :], strict=False
                            )
                        ],
                        state=self._grammar.start if state is None else state,
                        heard=self._live[ticket][1] if ticket in self._live else None,
                        seen=self._nothing_seen(request.sampling),
                    )
                    for index, (ticket, seed) in enumerate(tickets.items())
                ]
            )

    def _make_room(self, sample: _Sample, branch: _Branch) -> None:
        """Forget the oldest positions of a sequence whose window is full."""
        window = sample.request.sampling.window
        if window and sample.heard is not None:
            self._settle(sample, branch)
        if window and branch.region.length == self._window(window):
            drop = dropped(self._window(window))
            self._cache.forget(branch.region, keep_first=SINKS, count=drop)

    def _settle(self, sample: _Sample, branch: _Branch) -> None:
        """Read alone what was read, so that near ties need no past however long a sample lasts."""
        count = len(sample.columns) - 1  # the last was not read yet
        if sample.settled is None:
            window = self._window(sample.request.sampling.window)
            sample.settled = self._alone_reader(window, window, part=PART)
            sample.columns = [*map(tuple, branch.prompt.T.tolist()), *sample.columns]
            count += len(branch.prompt[0])
        while count >= (part := sample.settled.next_part):
            sample.settled.read(self._unsettled(sample, branch)[:, :part])
            sample.columns = sample.columns[part:]
            count -= part

    def _window(self, window: int) -> int:
        return min(window, self._decoder.config.max_positions)

    def _read(self, rows: Sequence[tuple[_Branch, Tensor]]) -> Tensor:
        """Run the model over the next columns of some sequences; the last state of each, [n, D]."""
        ids = torch.cat([columns for _, columns in rows], dim=1)
        counts = [columns.shape[1] for _, columns in rows]
        for (branch, _), count in zip(rows, counts, strict=True):
            branch.num_read += count
        if self._static is not None and len(counts) == ids.shape[1]:
            hidden = self._static.read(ids, [branch.region for branch, _ in rows])
        else:
            hidden = self._read_ragged(
                ids, [(b.region, n) for (b, _), n in zip(rows, counts, strict=True)]
            )
        for index, (branch, _) in enumerate(rows):
            if branch.num_read == branch.prompt.shape[1]:
                branch.state = hidden[index : index + 1]
        return hidden

    def _read_ragged(self, ids: Tensor, rows: Sequence[tuple[Region, int]]) -> Tensor:
        step = self._cache.step(rows)
        select = None
        if len(rows) < ids.shape[1]:
            select = torch.tensor([n for _, n in rows]).cumsum(0).to(self.lm.device) - 1
        hidden = self._decoder.hidden(ids[None].to(self.lm.device), cache=step, select=select)
        return hidden if select is not None else hidden[0]

    def _draw(self, samples: list[_Sample], states: Tensor) -> list[Drawn]:
        """Choose the next column of every sample from the states of all their branches."""
        noise = [self._noise(sample) for sample in samples]
        ids, certain = self._choose(samples, states, noise)
        for index in (~certain).nonzero().flatten().tolist():
            sample = samples[index]
            alone = torch.cat([self._alone(sample, branch) for branch in sample.branches])
            ids[index] = self._choose([sample], alone, [noise[index]])[0][0]
        drawn = []
        for sample, column in zip(samples, ids.tolist(), strict=True):
            drawn.append(self._advance(sample, tuple(column)))
        self._running = [s for s in self._running if s.branches]
        return drawn

    def _advance(self, sample: _Sample, column: tuple[int, ...]) -> Drawn:
        sample.columns.append(column)
        sample.num_drawn += 1
        sample.waits = sample.heard is not None
        if sample.seen is not None:
            local = local_ids(torch.tensor([column]), self._row_ids)[0]
            for seen, at in zip(sample.seen, local.tolist(), strict=True):
                seen[at] = True
        state = self._grammar.advance(sample.state, column)
        sampling = sample.request.sampling
        limit = self._decoder.config.max_positions
        finished = (
            state is None
            or sample.num_drawn >= sampling.max_units
            or (not sampling.window and max(b.num_read for b in sample.branches) + 1 >= limit)
            or any(_ends_with(sample.columns, run) for run in sample.request.stop)
        )
        if finished:
            self._release(sample)
        else:
            sample.state = state
        return Drawn(ticket=sample.ticket, column=column, finished=finished)

    def _release(self, sample: _Sample) -> None:
        for branch in sample.branches:
            self._cache.release(branch.region)
        sample.branches = []
        self._live.pop(sample.ticket, None)
        self._full = False

    def _noise(self, sample: _Sample) -> list[Tensor] | None:
        if sample.request.sampling.temperature == 0:
            return None
        return [seeded_noise(sample.generator, len(ids)) for ids in self._row_ids]

    def _nothing_seen(self, sampling: SamplingConfig) -> list[Tensor] | None:
        if sampling.repetition_penalty == 1:
            return None
        return [torch.zeros(len(ids), dtype=torch.bool) for ids in self._row_ids]

    def _choose(
        self, samples: Sequence[_Sample], states: Tensor, noise: Sequence[list[Tensor] | None]
    ) -> tuple[Tensor, Tensor]:
        """Choose a column for each sample.

        Returns:
            ids: int64 [n, R], on the CPU.
            certain: bool [n].
        """
        device = states.device
        masks = [self._grammar.mask_of(sample.state) for sample in samples]
        if self._greedy is not None and all(map(_is_plain, samples)):
            return self._greedy(states, masks)
        mask_index = torch.tensor(masks, device=device)
        guides = _Guides(samples, device) if len(states) > len(samples) else None
        certain = torch.ones(len(samples), dtype=torch.bool)
        given = self._given(samples)
        endless = None
        if any(sample.request.endless for sample in samples):
            endless = torch.tensor([sample.request.endless for sample in samples], device=device)
        num_live = [sample.request.num_live_rows for sample in samples]
        configs = {sample.request.sampling for sample in samples}

        def pick(row: int, logits: Tensor) -> Tensor:
            scores = logits.float()
            if guides is not None:
                scores = guides.lead(scores)
            if any(sample.seen is not None for sample in samples):
                scores = self._penalized(samples, row, scores)
            scores = scores + self._barriers[row][mask_index]
            if endless is not None:
                scores[endless, END] = -torch.inf
            picked = torch.zeros(len(samples), dtype=torch.int64, device=device)
            for sampling in configs:
                alike = [i for i, s in enumerate(samples) if s.request.sampling == sampling]
                # Most batches are of one kind: a slice is copied faster than an index.
                chosen = slice(None) if len(configs) == 1 else alike
                drawn = None
                if sampling.temperature > 0:
                    drawn = torch.stack([noise[i][row] for i in alike]).to(device)  # type: ignore[index]
                # Guidance stretches differences, and so rounding.
                tolerance = self._tolerance * max(1.0, 2 * sampling.guidance - 1)
                ids, sure = choose(scores[chosen], sampling, drawn, tolerance)
                if given is not None:
                    known = given[chosen, row].to(device)
                    ids = torch.where(known >= 0, known, ids)
                    sure = sure | (known >= 0)
                picked[chosen] = ids
                certain[chosen] &= sure.cpu()
            return picked if guides is None else picked[guides.owners]

        ids = self._sampler.frame(states, pick, len(self._row_ids) - min(num_live))
        ids = (ids if guides is None else ids[guides.firsts]).cpu()
        ids = F.pad(ids, (0, min(num_live)), value=-1)
        for index, count in enumerate(num_live):
            ids[index, ids.shape[1] - count :] = -1
        return ids, certain

    def _given(self, samples: Sequence[_Sample]) -> Tensor | None:
        """Cells of this column that need no choice, local ids int64 [n, R]; -1: free.

        Prompts know them already; or they are live, which is as if they held ``pad`` so far.
        """
        at = [sample.num_drawn for sample in samples]
        if not any(
            index < sample.request.prompt.given.shape[1] or sample.heard is not None
            for index, sample in zip(at, samples, strict=True)
        ):
            return None
        cells = torch.full((len(samples), len(self._row_ids)), -1)
        for number, (index, sample) in enumerate(zip(at, samples, strict=True)):
            if index < sample.request.prompt.given.shape[1]:
                known = sample.request.prompt.given[:, index]
                for row in (known >= 0).nonzero().flatten().tolist():
                    ids = self._row_ids[row].cpu()
                    cells[number, row] = torch.searchsorted(ids, known[row])
            cells[number, cells.shape[1] - sample.request.num_live_rows :] = PAD
        return cells

    def _penalized(self, samples: Sequence[_Sample], row: int, scores: Tensor) -> Tensor:
        nothing = torch.zeros(scores.shape[1], dtype=torch.bool)
        seen = [nothing if sample.seen is None else sample.seen[row] for sample in samples]
        penalties = torch.tensor(
            [sample.request.sampling.repetition_penalty for sample in samples], device=scores.device
        )
        return penalize(scores, torch.stack(seen).to(scores.device), penalties[:, None])

    def _alone(self, sample: _Sample, branch: _Branch) -> Tensor:
        """The state of a sequence, computed from nothing but its own columns: float [1, D]."""
        columns = self._unsettled(sample, branch)
        if sample.settled is not None:
            return sample.settled.look(columns)
        window = sample.request.sampling.window
        count = columns.shape[1]
        if not window:
            return self._alone_reader(count, count, part=count).read(columns)
        size = self._window(window)
        return self._alone_reader(size, min(size, count), part=PART).read(columns)

    def _alone_reader(self, window: int, num_positions: int, *, part: int) -> AloneReader:
        return AloneReader(
            self._decoder, window, part=part, num_positions=num_positions, dtype=self._dtype
        )

    def _unsettled(self, sample: _Sample, branch: _Branch) -> Tensor:
        """The columns of a sequence that are not settled, the last drawn included."""
        rows = len(self._row_ids)
        columns = torch.tensor(sample.columns, dtype=torch.int64).reshape(-1, rows).T
        return columns if sample.settled else torch.cat([branch.prompt, columns], dim=1)


class _Guides:
    """Which states belong together where some samples have two branches."""

    def __init__(self, samples: Sequence[_Sample], device: torch.device) -> None:
        counts = torch.tensor([len(sample.branches) for sample in samples])
        scales = [sample.request.sampling.guidance for sample in samples]
        self.firsts = (counts.cumsum(0) - counts).to(device)
        self.owners = torch.arange(len(samples)).repeat_interleave(counts).to(device)
        """Whose each state is, int64 [states]."""
        self._lasts = (counts.cumsum(0) - 1).to(device)
        self._scales = torch.tensor(scales, device=device)[:, None]

    def lead(self, scores: Tensor) -> Tensor:
        """Go from the unconditioned scores towards the others and beyond: [samples, V]."""
        free = scores[self._lasts]
        return free + self._scales * (scores[self.firsts] - free)


def _most_probable(
    head: nn.Module,
    row_ids: Tensor,
    barriers: Tensor,
    tolerance: float,
    states: Tensor,
    masks: list[int],
) -> tuple[Tensor, Tensor]:
    """What :meth:`Engine._choose` gives where all samples are plain and there is one row."""
    ids, certain = choose(head(states).float() + barriers[masks], GREEDY, None, tolerance)
    return row_ids[ids][:, None], certain


def _is_plain(sample: _Sample) -> bool:
    """Whether the most probable id that may come is what comes next."""
    return (
        sample.request.sampling.temperature == 0
        and len(sample.branches) == 1
        and sample.seen is None
        and sample.num_drawn >= sample.request.prompt.given.shape[1]
        and not sample.request.endless
    )


def _complete(sample: _Sample) -> bool:
    """Whether a sample's last column can be read; live cells that have come are put into it."""
    if sample.waits and sample.heard:
        cells = sample.heard.popleft()
        sample.columns[-1] = (*sample.columns[-1][: -len(cells)], *cells)
        sample.waits = False
    return not sample.waits


def _ends_with(columns: Sequence[tuple[int, ...]], run: tuple[int, ...]) -> bool:
    return 0 < len(run) <= len(columns) and tuple(c[0] for c in columns[-len(run) :]) == run
