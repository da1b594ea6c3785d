"""Decoding without the host in the way: steps of fixed shapes, captured as CUDA graphs.

Where every sequence reads one column, a step is hundreds of kernels of a few microseconds each,
and a GPU waits for the host to launch them. Here nothing that changes from step to step is known
to the host: where sequences lie, how long they are and what they read are numbers in tensors
that stay where they are. So a step that was recorded once can be repeated by one launch.

Batches are filled up to a power of two with rows that write into a block of no sequence. Keys are
looked at in full lengths of a power of two, and hidden by a mask beyond a sequence's end. So an
engine has few graphs: 64 sequences, of two branches each, in a context of 2,048 positions come in
8 sizes of batch, a lone sequence in 2 ways, and 4 lengths, which makes 36 at most.

Source:
    CUDA graphs over preallocated tensors: the PyTorch notes on CUDA semantics; with a static
    KV cache: gpt-fast, github.com/pytorch-labs/gpt-fast.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.errors import InputError
from speechlm.model.cache import BLOCK, CacheStep, KVCache, Region
from speechlm.model.decoder import Decoder
from speechlm.model.norm import compute_dtype
from speechlm.model.rotary import rotary_table

FEWEST_KEYS = 256
"""Keys that a step looks at, at least: shorter sequences share one shape."""
RECORD_AT = 4
"""The use of a shape from which it is recorded: a capture takes as long as several steps."""
WARM_UPS = 2
"""Runs before a capture, in which libraries set up what they must not set up within it."""

_CAPTURE = threading.Lock()
"""A process may capture one graph at a time."""

Work = Callable[[], Tensor]
Record = Callable[[Work], Work]
"""From work on tensors that stay where they are to what repeats it on the same addresses."""


def recorder_for(device: torch.device) -> Record | None:
    """How steps are recorded on a device; None where ragged steps serve better."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """Captures CUDA graphs that share one pool of memory for what they compute in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        # Graphs may share memory because each is replayed whole, and its output copied, before
        # another is.
        with _CAPTURE, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, a vocoder's say, may go on allocating meanwhile.
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs are captured: one for all engines, as cuBLAS keeps a workspace for each."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Program:
    """A function whose inputs stay where they are, run as it is until it pays to record it."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        reads: Callable[[], Iterable[Tensor]],
        record: Record,
    ) -> None:
        """Take over the inputs: their shapes are those of every call.

        Args:
            function: Of tensors, to one; it must neither wait for the device nor let a number
                on it decide what it does. It must not know who keeps this program: in a cycle,
                a cache would wait on the device for Python's collector.
            inputs: On the device; what they hold is valid input.
            reads: What else the function reads and its owner might let go of. A graph keeps
                nothing alive.
            record: Makes the function repeatable.
        """
        self._inputs = inputs
        self._work: Work = lambda: function(*inputs)
        self._reads = reads
        self._record = record
        self._uses = 0
        self._kept: list[Tensor] = []

    def __call__(self, *values: Tensor) -> Tensor:
        """Run on new values of the first rows of each input; the output is the caller's."""
        for fixed, value in zip(self._inputs, values, strict=True):
            fixed[: len(value)].copy_(value)
        self._uses += 1
        if self._uses == RECORD_AT:
            self._kept = list(self._reads())
            self._work = self._record(self._work)
        return self._work().clone()


class StaticStep:
    """One next position of each of B sequences, as :class:`CacheStep` but of fixed shapes."""

    def __init__(
        self, cache: KVCache, starts: Tensor, positions: Tensor, num_keys: int, first: int | None
    ) -> None:
        """Lay out a step on the device.

        Args:
            cache: Holds the sequences.
            starts: Where each one's slots begin, int64 [B].
            positions: Where each stands, int64 [B]: how many positions it has read.
            num_keys: How many of its positions are looked at, from the first.
            first: Where the only sequence begins, if its keys are to be read in place;
                None to gather those of any sequences.
        """
        self._cache = cache
        self.positions = positions
        self.longest = cache.config.max_positions
        """As if a sequence filled the context: one rotary table serves all."""
        self._slots = starts + positions
        self._num_keys = num_keys
        offsets = torch.arange(num_keys, device=starts.device)
        seen = offsets <= positions[:, None]
        window = cache.config.sliding_window
        if window is not None:
            seen = seen & (offsets > positions[:, None] - window)
        self._mask = seen[:, None, None]
        self._keys_at: int | Tensor
        """Where the keys are: the first's slot, or every one's, int64 [B * num_keys]."""
        if first is None:
            # Beyond the cache's end there is nothing that the mask shows.
            index = (starts[:, None] + offsets).clamp(max=cache.num_positions - 1)
            self._keys_at = index.flatten()
        else:
            self._keys_at = first

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Remember new keys and values, and let each query see its own sequence up to itself.

        Args:
            layer: Which layer's.
            q: float [B, heads, head_dim].
            k: float [B, kv_heads, head_dim].
            v: The same.

        Returns:
            float [B, heads * head_dim].
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(1, self._slots, k.transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, self._slots, v.transpose(0, 1).to(values.dtype))
        # The queries that share a key head are rows of one product.
        q = q.to(keys.dtype).view(len(q), keys.shape[0], -1, q.shape[2])
        k, v = self._seen(keys), self._seen(values)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask).flatten(1)

    def _seen(self, store: Tensor) -> Tensor:
        """Each sequence's part of a store, float [B, kv_heads, num_keys, head_dim]."""
        if isinstance(self._keys_at, int):
            return store.narrow(1, self._keys_at, self._num_keys)[None]
        gathered = store.index_select(1, self._keys_at)
        return gathered.view(len(store), -1, self._num_keys, store.shape[2]).transpose(0, 1)


class StaticReader:
    """Reads one column of each of some sequences of a cache."""

    def __init__(self, decoder: Decoder, cache: KVCache, num_rows: int, record: Record) -> None:
        """Take a block of the cache, which must be free as yet.

        Args:
            decoder: Ready to decode.
            cache: Its tensors must stay where they are.
            num_rows: R, the rows of a column.
            record: As :func:`recorder_for` gives it.
        """
        scratch = cache.reserve(BLOCK)
        assert scratch is not None
        assert scratch.start == 0
        self._decoder = decoder
        self._cache = cache
        self._num_rows = num_rows
        self._record = record
        self._programs: dict[tuple[int, int, bool], Program] = {}

    @torch.inference_mode()
    def read(self, ids: Tensor, regions: Sequence[Region]) -> Tensor:
        """Run the model over the next column of each sequence.

        Args:
            ids: The columns, int64 [R, B], on the CPU.
            regions: Where each sequence lies; all grow by one position.

        Returns:
            What the model made of each, float [B, D].

        Raises:
            InputError: A sequence does not fit into what it reserved, or into the context.
        """
        for region in regions:
            limit = min(region.capacity, self._decoder.config.max_positions)
            if region.length >= limit:
                raise InputError(
                    f"expected at most {limit} positions in the cache, got {region.length + 1}"
                )
        batch = power_of_two(len(regions))
        longest = max(region.length for region in regions) + 1
        # A lone request lies right behind the scratch block: its keys need no gathering.
        in_place = len(regions) == 1 and regions[0].start == BLOCK
        num_keys = min(max(power_of_two(longest), FEWEST_KEYS), self._cache.num_positions - BLOCK)
        key = (batch, num_keys, in_place)
        if key not in self._programs:
            self._programs[key] = self._program(*key)
        # What fills the batch up reads id 0 at position 0 of the scratch block.
        values = torch.zeros(batch, self._num_rows + 2, dtype=torch.int64)
        values[: len(regions), :-2] = ids.T
        values[: len(regions), -2] = torch.tensor([region.start for region in regions])
        values[: len(regions), -1] = torch.tensor([region.length for region in regions])
        hidden = self._programs[key](values)
        for region in regions:
            region.length += 1
        return hidden[: len(regions)]

    def _program(self, batch: int, num_keys: int, in_place: bool) -> Program:
        device = self._cache.keys[0].device
        inputs = torch.zeros(batch, self._num_rows + 2, dtype=torch.int64, device=device)
        first = BLOCK if in_place else None
        function = functools.partial(_next_states, self._decoder, self._cache, num_keys, first)
        reads = functools.partial(_read_by, self._decoder)
        return Program(function, (inputs,), reads, self._record)


def _next_states(
    decoder: Decoder, cache: KVCache, num_keys: int, first: int | None, values: Tensor
) -> Tensor:
    """Read columns, int64 [B, R], each with its sequence's start and length behind: [B, D]."""
    step = StaticStep(cache, values[:, -2], values[:, -1], num_keys, first)
    return decoder.hidden(values[:, :-2].T[None], cache=cast(CacheStep, step))[0]


def _read_by(decoder: Decoder) -> list[Tensor]:
    """Its weights, and the rotary table, which a cache holds that drops what is long unused."""
    config = decoder.config
    if config.position != "rope":
        return _weights(decoder)
    table = rotary_table(
        config.rotary_dim,
        config.rope_theta,
        config.rope_scaling,
        power_of_two(max(config.max_positions, 64)),
        decoder.device,
        compute_dtype(decoder.model.embed_tokens.weight),
    )
    return [*_weights(decoder), *table]


def _weights(module: nn.Module) -> list[Tensor]:
    """As they are now: a module that moves to another device lets go of them."""
    return [parameter.detach() for parameter in module.parameters()]


class GreedyHead:
    """The most probable id that may come, for layouts of one row and LMs of one softmax."""

    def __init__(
        self, head: nn.Module, row_ids: Tensor, barriers: Tensor, tolerance: float, record: Record
    ) -> None:
        """Keep what a choice needs.

        Args:
            head: From states [B, D] to scores [B, V_0].
            row_ids: The joint ids of those scores, int64 [V_0].
            barriers: For each set of ids that may come, 0 at those and -inf at others: what
                is added to scores, float32 [M, V_0], on the device.
            tolerance: How far apart two scores must be to be told apart for certain.
            record: As :func:`recorder_for` gives it.
        """
        self._head = head
        self._row_ids = row_ids.to(barriers.device)
        self._barriers = barriers
        self._tolerance = tolerance
        self._record = record
        self._programs: dict[int, Program] = {}

    @torch.inference_mode()
    def choose(self, states: Tensor, mask_index: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Choose an id for each sequence, and wait for the device once.

        Args:
            states: float [B, D].
            mask_index: Which of the sets holds for each.

        Returns:
            ids: Joint ids, int64 [B, 1], on the CPU.
            certain: Whether the choice is safe from rounding, bool [B].
        """
        batch = power_of_two(len(states))
        if batch not in self._programs:
            inputs = (
                torch.zeros(batch, states.shape[1], dtype=states.dtype, device=states.device),
                torch.zeros(batch, dtype=torch.int64, device=states.device),
            )
            function = functools.partial(_best, self._head, self._row_ids, self._barriers)
            reads = functools.partial(_weights, self._head)
            self._programs[batch] = Program(function, inputs, reads, self._record)
        best = self._programs[batch](states, torch.tensor(mask_index)).cpu()[:, : len(states)]
        return best[0].long()[:, None], best[1] > self._tolerance


def _best(
    head: nn.Module, row_ids: Tensor, barriers: Tensor, states: Tensor, mask_index: Tensor
) -> Tensor:
    """The best ids and their lead on the second best, float64 [2, B]."""
    scores = head(states).float() + barriers[mask_index]
    # Two maxima: on a GPU topk sorts.
    score, index = scores.max(dim=1)
    others = scores.scatter(1, index[:, None], -torch.inf)
    return torch.stack([row_ids[index].double(), (score - others.amax(dim=1)).double()])


def power_of_two(number: int) -> int:
    """The first that is not less."""
    return 1 << (number - 1).bit_length()
