"""Steps of fixed shapes against ragged ones, repeated as strictly as a CUDA graph repeats them."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import random_content
from small_lm import small_lm
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation import engine as engine_module
from speechlm.generation import graphs, ready
from speechlm.generation.engine import Engine
from speechlm.generation.graphs import CudaRecorder, GreedyHead, Record, StaticReader, Work
from speechlm.generation.request import Request
from speechlm.generation.sampling import TOLERANCE, choose
from speechlm.layouts.grid import Layout, Prompt
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model import fast
from speechlm.model.architecture import RopeScaling
from speechlm.model.cache import BLOCK, KVCache
from speechlm.model.decoder import Decoder
from speechlm.model.fast_linear import Weights
from speechlm.model.rotary import rotary_table
from speechlm.model.unit_lm import UnitLM

GARBAGE = 0x7F
"""A byte: floats of it are huge, indices of it are out of every range."""
WAITS = {
    # What makes the host wait for the device, or the device read the host's memory.
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::lift_fresh",
    "aten::masked_select",
    "aten::nonzero",
}


class Address:
    """Where a tensor lies, and nothing that keeps it there unless a tape owns it."""

    def __init__(self, tensor: Tensor, owned: dict[int, torch.UntypedStorage]) -> None:
        storage = tensor.untyped_storage()
        self._owned = owned.get(storage._cdata)
        self._storage = StorageWeakRef(storage)
        self._layout = (tensor.storage_offset(), tensor.shape, tensor.stride())
        self._dtype = tensor.dtype

    def tensor(self) -> Tensor:
        storage = self._owned or torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        assert storage is not None, "a graph reads memory that nothing holds any more"
        return torch.empty(0, dtype=self._dtype).set_(storage, *self._layout)


class Tape(TorchDispatchMode):
    """Records operations with the addresses they read and write, and repeats just those."""

    def __init__(self) -> None:
        super().__init__()
        self._owned: dict[int, torch.UntypedStorage] = {}
        self._operations: list[tuple[Any, Any, Any, list[Address] | None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        assert func.name().split(".")[0] not in WAITS, f"{func} waits for the device"
        if func.name().startswith("aten::index"):
            indices = tree_leaves(args[1])
            assert not any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        where = self._where((args, kwargs))
        output = func(*args, **kwargs)
        read = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if is_tensor(t)}
        made = [t for t in tree_leaves(output) if is_tensor(t)]
        fresh = [t for t in made if t.untyped_storage()._cdata not in read]
        assert not fresh or len(fresh) == len(made)
        for tensor in fresh:
            self._owned[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        if fresh or func._schema.is_mutable:  # else it is a view: nothing was computed
            self._operations.append((func, *where, self._where(fresh) if fresh else None))
        return output

    def _where(self, tensors: Any) -> Any:
        return tree_map_only(Tensor, lambda t: Address(t, self._owned), tensors)

    def forget(self) -> None:
        """What a replay leaves behind is another graph's to overwrite."""
        for storage in self._owned.values():
            storage.fill_(GARBAGE)

    def finish(self, output: Tensor) -> Work:
        result = self._where(output)

        def replay() -> Tensor:
            for func, args, kwargs, targets in self._operations:
                args, kwargs = tree_map_only(Address, Address.tensor, (args, kwargs))
                made = [t for t in tree_leaves(func(*args, **kwargs)) if is_tensor(t)]
                for target, value in zip(targets or [], made, strict=bool(targets)):
                    target.tensor().copy_(value)
            return result.tensor()

        return replay


class TapeRecorder:
    """As strict as CUDA graphs that share a pool: memory in between holds from no step to
    another."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.replays = 0

    def __call__(self, work: Work) -> Work:
        tape = Tape()
        with tape:
            output = work()
        self.tapes.append(tape)
        replay = tape.finish(output)
        del output

        def clean_replay() -> Tensor:
            self.replays += 1
            for other in self.tapes:
                other.forget()
            return replay()

        return clean_replay


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


@pytest.fixture(scope="module", autouse=True)
def plain_linears() -> Iterator[None]:
    """Linear layers as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ready, fast):
            patch.setattr(module, "fast_linear", lambda linear, weights: linear)
        yield


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """What engines record with from now on, early and in shapes that soon change."""
    recorder = TapeRecorder()
    monkeypatch.setattr(engine_module, "recorder_for", lambda device: recorder)
    monkeypatch.setattr(graphs, "RECORD_AT", 2)
    monkeypatch.setattr(graphs, "FEWEST_KEYS", 8)
    return recorder


def prompts_for(lm: UnitLM, lengths: list[int]) -> list[Prompt]:
    prompts = []
    for seed, length in enumerate(lengths):
        content = random_content(lm.layout, frames=0, asked=length, tokens=length, seed=seed)
        prompts.append(lm.layout.prompt(lm.vocabulary, {"question": content["question"]}))
    return prompts


def endless(lm: UnitLM) -> UnitLM:
    """One that never ends while anything else may come."""
    lm.layout = Endless(lm.layout)
    return lm


class Endless:
    """A layout with a grammar that bears with no end."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)

    def grammar(self, vocabulary: Vocabulary) -> SimpleNamespace:
        real = self._layout.grammar(vocabulary)

        def masks_of(row: int) -> Tensor:
            masks = real.masks_of(row).clone()
            masks[:, vocabulary.end] &= masks.sum(dim=1) == 1
            return masks

        return SimpleNamespace(
            masks_of=masks_of, start=real.start, mask_of=real.mask_of, advance=real.advance
        )


def play(
    lm: UnitLM, requests: list[Request], cancel_at: tuple[int, int] | None = None, **options: Any
) -> list[list[tuple[int, ...]]]:
    """What comes of requests that join one step after another."""
    engine = Engine(lm, **options)
    left = list(requests)
    drawn: dict[int, list[tuple[int, ...]]] = {}
    steps = 0
    while left or engine.busy:
        if left:
            drawn.update({ticket: [] for ticket in engine.add(left.pop(0))})
        if cancel_at is not None and steps == cancel_at[0]:
            engine.cancel(cancel_at[1])
        for one in engine.step():
            drawn[one.ticket].append(one.column)
        steps += 1
    return list(drawn.values())


def play_both(
    lm: UnitLM, requests: list[Request], cancel_at: tuple[int, int] | None = None, **options: Any
) -> tuple[list[list[tuple[int, ...]]], list[list[tuple[int, ...]]]]:
    """The same in steps of fixed shapes and in ragged ones."""
    static = play(lm, requests, cancel_at, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "recorder_for", lambda device: None)
        ragged = play(lm, requests, cancel_at, **options)
    return static, ragged


SAMPLINGS = [
    SamplingConfig(max_units=20),
    SamplingConfig(max_units=20, temperature=1.0),
    SamplingConfig(max_units=20, temperature=0.8, top_k=4, repetition_penalty=1.3),
    SamplingConfig(max_units=20, temperature=1.2, top_p=0.8, min_p=0.1),
]
SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": dict(num_heads=4, num_kv_heads=2, qk_norm=True, qkv_bias=True),
    "sliding window": dict(sliding_window=7),
    "part rotary, tied": dict(rotary_fraction=0.5, tie_embeddings=True, parallel_residual=True),
    "scaled rotary": dict(
        rope_scaling=RopeScaling(kind="yarn", factor=4, original_max_positions=16)
    ),
    "learned": dict(position="learned", position_offset=2, norm="layer", gated=False),
    "sinusoidal": dict(position="sinusoidal", embed_scale=2.0),
    "no positions": dict(position="none"),
}


HEADED_CASES = [
    ("flat", False),
    ("flat", True),
    ("delay", False),
    ("delay", True),
    ("text-parallel", False),
    ("text-timed", True),
]


@pytest.mark.parametrize(("case", "depth"), HEADED_CASES)
def test_requests_that_come_and_go_get_what_ragged_steps_give(
    case: str, depth: bool, recorder: TapeRecorder
) -> None:
    lm = endless(small_lm(case, depth=depth))
    prompts = prompts_for(lm, [3, 9, 1, 20, 0, 6])
    requests = [
        Request(prompt=prompt, sampling=sampling, seeds=(7,))
        for prompt, sampling in zip(prompts, SAMPLINGS + SAMPLINGS[:2], strict=True)
    ]
    static, ragged = play_both(lm, requests, num_positions=256, max_batch=3)
    assert static == ragged
    assert recorder.replays > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_any_architecture_gets_what_ragged_steps_give(shape: str, recorder: TapeRecorder) -> None:
    lm = endless(small_lm(**SHAPES[shape]))
    prompts = prompts_for(lm, [3, 9, 1, 20])
    requests = [
        Request(prompt=prompt, sampling=sampling)
        for prompt, sampling in zip(prompts, SAMPLINGS, strict=True)
    ]
    static, ragged = play_both(lm, requests, num_positions=256)
    assert static == ragged
    assert recorder.replays > 10


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "sampled"])
def test_samples_guidance_and_cancelling_change_nothing(
    sampling: SamplingConfig, recorder: TapeRecorder
) -> None:
    lm = endless(small_lm())
    first, second, third = prompts_for(lm, [5, 12, 3])
    guided = SamplingConfig(max_units=12, guidance=2.0, temperature=sampling.temperature)
    requests = [
        Request(prompt=first, sampling=sampling, seeds=(1, 2, 3)),
        Request(prompt=second, sampling=guided, unconditioned=third),
        Request(prompt=third, sampling=sampling),
    ]
    static, ragged = play_both(lm, requests, cancel_at=(6, 1), num_positions=512)
    assert static == ragged
    assert len(static[1]) < len(static[0])
    assert recorder.replays > 10


@pytest.mark.parametrize("lengths", [[40], [40, 30], [40, 30, 2]], ids=len)
def test_sequences_fill_the_context_and_the_cache_to_their_ends(
    lengths: list[int], recorder: TapeRecorder
) -> None:
    lm = endless(small_lm(max_positions=48))
    sampling = SamplingConfig(max_units=100, temperature=1.0)
    requests = [Request(prompt=p, sampling=sampling) for p in prompts_for(lm, lengths)]
    (short,) = prompts_for(lm, [2])
    few = Request(prompt=short, sampling=SamplingConfig(max_units=20))
    # As many keys of the last one are looked at as of the others: beyond the end of the cache.
    static, ragged = play_both(lm, [*requests, few], num_positions=64 * len(lengths) + BLOCK)
    assert static == ragged
    for request, columns in zip(requests, static, strict=False):
        assert len(request.prompt) + len(columns) == 48
    assert recorder.replays > 0


def test_a_window_moves_on_over_recorded_steps(recorder: TapeRecorder) -> None:
    lm = endless(small_lm(max_positions=32))
    sampling = SamplingConfig(max_units=60, temperature=0.5, window=30)
    prompts = prompts_for(lm, [20, 3, 11])
    requests = [Request(prompt=prompt, sampling=sampling) for prompt in prompts]
    static, ragged = play_both(lm, requests, num_positions=128)
    assert static == ragged
    assert all(len(columns) == 60 for columns in static)
    assert recorder.replays > 40


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=5)
@given(lengths=st.lists(st.integers(0, 25), min_size=1, max_size=5), rows=st.integers(1, 2))
def test_states_are_those_of_ragged_steps(shape: str, lengths: list[int], rows: int) -> None:
    """Sequences of any lengths, among them empty ones, read on by a few columns."""
    lm = small_lm(**SHAPES[shape])
    decoder = fast.prepare(lm.decoder)
    difference = state_difference(decoder, TapeRecorder(), lengths, rows, torch.float32)
    assert difference < 1e-5


def test_states_in_bfloat16_are_near_those_of_ragged_steps() -> None:
    decoder = fast.prepare(small_lm(num_heads=4, num_kv_heads=2).decoder, "bfloat16")
    difference = state_difference(decoder, TapeRecorder(), [0, 9, 25], 1, torch.bfloat16)
    assert difference < 0.1


def state_difference(
    decoder: Decoder, record: Record, lengths: list[int], rows: int, dtype: torch.dtype
) -> float:
    """How far the states of six more columns are from ragged ones, at most."""
    config, device = decoder.config, decoder.device
    generator = torch.Generator().manual_seed(0)
    static, ragged = (
        KVCache(config, BLOCK * (1 + len(lengths)), device=device, dtype=dtype) for _ in range(2)
    )
    states, expected = [], []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(graphs, "RECORD_AT", 3)
        patch.setattr(graphs, "FEWEST_KEYS", 8)
        reader = StaticReader(decoder, static, rows, record)
        ragged.reserve(BLOCK)
        regions = [[cache.reserve(BLOCK) for _ in lengths] for cache in (static, ragged)]
        prompts = torch.randint(config.vocab_size, (1, rows, sum(lengths)), generator=generator)
        for cache, mine in zip((static, ragged), regions, strict=True):
            chunks = [(region, n) for region, n in zip(mine, lengths, strict=True) if n]
            if chunks:
                decoder.hidden(prompts.to(device), cache=cache.step(chunks))
        for _ in range(6):
            ids = torch.randint(config.vocab_size, (rows, len(lengths)), generator=generator)
            states.append(reader.read(ids, regions[0]))
            step = ragged.step([(region, 1) for region in regions[1]])
            expected.append(decoder.hidden(ids[None].to(device), cache=step)[0])
            assert states[-1].dtype == expected[-1].dtype
        # Only now: what a step gave must outlast the next ones.
        return float((torch.stack(states) - torch.stack(expected)).abs().max())


def test_a_step_needs_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no numbers to decide by, and mix with no others."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # not known there
    lm = small_lm("text-parallel", num_heads=4, num_kv_heads=2, sliding_window=7)
    decoder = fast.prepare(lm.decoder.to("meta"), "bfloat16")
    cache = KVCache(decoder.config, 256, device=decoder.device, dtype=torch.bfloat16)
    reader = StaticReader(decoder, cache, 3, TapeRecorder())
    regions = [cache.reserve(BLOCK), cache.reserve(BLOCK)]
    for some in (regions, regions[:1], regions[1:]):
        states = reader.read(torch.zeros(3, len(some), dtype=torch.int64), some)
        assert states.device.type == "meta"
        assert states.shape == (len(some), 16)


def test_a_sequence_beyond_its_room_or_the_context_is_refused(recorder: TapeRecorder) -> None:
    decoder = fast.prepare(small_lm(max_positions=40).decoder)
    cache = KVCache(decoder.config, 4 * BLOCK)
    reader = StaticReader(decoder, cache, 1, recorder)
    for capacity, limit in ((BLOCK, BLOCK), (2 * BLOCK, 40)):
        region = cache.reserve(capacity)
        region.length = limit
        with pytest.raises(InputError, match=f"at most {limit} positions .* got {limit + 1}"):
            reader.read(torch.zeros(1, 1, dtype=torch.int64), [region])
        assert region.length == limit


def test_there_are_as_many_records_as_shapes(recorder: TapeRecorder) -> None:
    """Batches of 1, 2, 4 and 8, a lone sequence in two ways, and 8, 16, 32 and 64 keys."""
    lm = endless(small_lm())
    for seed in range(3):
        lengths = torch.randint(40, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        requests = [
            Request(prompt=prompt, sampling=SamplingConfig(max_units=2 * length + 1))
            for prompt, length in zip(prompts_for(lm, lengths), lengths, strict=True)
        ]
        recorder.tapes.clear()
        play(lm, requests, num_positions=1024, max_batch=8)
        assert 4 < len(recorder.tapes) <= 4 * (4 + 1) + 4  # and the choice of each batch


def test_what_a_record_reads_outlives_its_owner(recorder: TapeRecorder) -> None:
    """A graph keeps no memory alive: neither weights that move nor a table that is dropped."""
    lm = endless(small_lm())
    (prompt,) = prompts_for(lm, [3])
    request = Request(prompt=prompt, sampling=SamplingConfig(max_units=20))
    (expected,) = play(lm, [request], num_positions=64)
    engine = Engine(lm, num_positions=64)
    engine.add(request)
    columns = []
    while engine.busy:
        columns += [drawn.column for drawn in engine.step()]
        if len(columns) == 16:  # the last shape is recorded
            rotary_table.cache_clear()
            lm.decoder.double()
            gc.collect()
    assert columns == expected


def test_an_engine_gives_its_memory_back_at_once(recorder: TapeRecorder) -> None:
    lm = small_lm()
    engine = Engine(lm, num_positions=256)
    for prompt in prompts_for(lm, [3, 5]):
        engine.add(Request(prompt=prompt, sampling=SamplingConfig(max_units=9)))
    for _ in range(3):
        engine.step()
    cache = weakref.ref(engine._cache)
    gc.disable()
    try:
        del engine
        recorder.tapes.clear()
        assert cache() is None
    finally:
        gc.enable()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_greedy_choice_is_that_of_sampling_and_as_certain(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    batches = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    row_ids = torch.arange(size) * 3 + 2
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    masks = torch.rand(4, size, generator=generator) < 0.6
    masks[torch.arange(4), torch.randint(size, (4,), generator=generator)] = True
    barriers = torch.zeros(4, size).masked_fill(~masks, -torch.inf)
    head = GreedyHead(nn.Identity(), row_ids, barriers, TOLERANCE, TapeRecorder())
    for batch in batches:
        # Steps of half the tolerance: ties, near ties and clear leads.
        steps = torch.randint(8, (batch, size), generator=generator)
        scores = steps * (TOLERANCE / 2)
        which = torch.randint(4, (batch,), generator=generator)
        ids, certain = head.choose(scores, which.tolist())
        masked = scores.masked_fill(~masks[which], -torch.inf)
        expected, sure = choose(masked, SamplingConfig(), None)
        assert ids.shape == (batch, 1)
        assert torch.equal(certain, sure)
        assert torch.equal(ids[certain, 0], row_ids[expected[certain]])
        # Where it is not certain it is one of the best all the same.
        local = torch.searchsorted(row_ids, ids[:, 0])
        assert torch.equal(masked.gather(1, local[:, None])[:, 0], masked.amax(dim=1))


@pytest.mark.parametrize(
    "work", [lambda x: x * x.max().item(), lambda x: x[x > 1], lambda x: x + torch.tensor([2.0])]
)
def test_what_no_graph_could_do_fails_here_too(work: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        TapeRecorder()(lambda: work(torch.ones(3)))


def test_a_number_of_the_host_stays_what_it_was() -> None:
    counts = iter(range(10))
    x = torch.ones(2)
    replay = TapeRecorder()(lambda: x + next(counts))
    x += 5
    assert replay().tolist() == [6, 6]
    assert replay().tolist() == [6, 6]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """What engines on a GPU capture from now on, early and in shapes that soon change."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    made: list[Work] = []

    def recorder_for(device: torch.device) -> Record:
        recorder = CudaRecorder(device)
        return lambda work: made.append(work) or recorder(work)

    monkeypatch.setattr(engine_module, "recorder_for", recorder_for)
    monkeypatch.setattr(graphs, "RECORD_AT", 2)
    monkeypatch.setattr(graphs, "FEWEST_KEYS", 8)
    return made


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "depth"), HEADED_CASES)
def test_captured_steps_give_what_ragged_ones_give(
    case: str, depth: bool, captures: list[Work]
) -> None:
    lm = endless(small_lm(case, depth=depth).to("cuda"))
    prompts = prompts_for(lm, [3, 9, 1, 20, 0, 6])
    requests = [
        Request(prompt=prompt, sampling=sampling, seeds=(7, 8))
        for prompt, sampling in zip(prompts, SAMPLINGS + SAMPLINGS[:2], strict=True)
    ]
    static, ragged = play_both(lm, requests, cancel_at=(6, 1), num_positions=512, max_batch=5)
    assert static == ragged
    assert len(captures) > 3


@pytest.mark.gpu
def test_a_window_moves_on_over_captured_steps(captures: list[Work]) -> None:
    lm = endless(small_lm(max_positions=32).to("cuda"))
    sampling = SamplingConfig(max_units=60, temperature=0.5, window=30)
    requests = [Request(prompt=prompt, sampling=sampling) for prompt in prompts_for(lm, [20, 3])]
    static, ragged = play_both(lm, requests, num_positions=128)
    assert static == ragged
    assert captures


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_captured_states_are_those_of_ragged_steps(
    shape: str, weights: Weights, captures: list[Work]
) -> None:
    decoder = fast.prepare(small_lm(**SHAPES[shape]).decoder.to("cuda"), weights)
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    for lengths, rows in (([0], 1), ([17], 2), ([0, 9, 25], 2)):
        recorder = CudaRecorder(decoder.device)
        difference = state_difference(decoder, recorder, lengths, rows, dtype)
        assert difference < (1e-4 if weights == "float32" else 0.1)


@pytest.mark.gpu
def test_a_capture_bears_other_threads_and_leaves_no_memory_behind(captures: list[Work]) -> None:
    lm = endless(small_lm().to("cuda"))
    requests = [
        Request(prompt=p, sampling=SamplingConfig(max_units=30)) for p in prompts_for(lm, [3, 9])
    ]
    done = threading.Event()

    def allocate() -> None:
        size = 2**20
        while not done.is_set():
            size = size + 2**20 if size < 2**28 else 2**20
            torch.zeros(size, dtype=torch.uint8, device="cuda").sum().item()

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        expected = play(lm, requests, num_positions=128)
        assert play(lm, requests, num_positions=128) == expected
    finally:
        done.set()
        thread.join()
    captures.clear()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        assert play(lm, requests, num_positions=128) == expected
        captures.clear()
    assert torch.cuda.memory_allocated() <= before
