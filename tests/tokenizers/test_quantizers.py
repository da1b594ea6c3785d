"""Quantizers give codes that stand for what they got, and codebooks that follow it."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm_tokenizers.quantizers import (
    CodebookLearner,
    ResidualFSQ,
    ResidualVQ,
    perplexity,
    used_levels,
)

LEVELS, VOCAB, DIM = 3, 64, 8
ALL = torch.full((4,), LEVELS)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _vectors(seed: int = 0) -> Tensor:
    """float32 [4, 100, DIM], in clusters."""
    generator = _generator(seed)
    centres = 3 * torch.randn(30, DIM, generator=_generator(7))
    chosen = centres[torch.randint(30, (4, 100), generator=generator)]
    return chosen + 0.5 * torch.randn(4, 100, DIM, generator=generator)


def _learnt(steps: int = 30) -> tuple[ResidualVQ, CodebookLearner]:
    torch.manual_seed(0)
    quantizer = ResidualVQ(LEVELS, VOCAB, DIM)
    learner = CodebookLearner(quantizer, warmup=3, reserve=1000)
    for step in range(steps):
        vectors, generator = _vectors(step), _generator(step)
        if learner.prepare(quantizer, vectors, generator):
            learner.update(quantizer, quantizer(vectors, ALL), generator)
    return quantizer, learner


@torch.no_grad()
def _error(vectors: Tensor, quantizer: ResidualVQ | ResidualFSQ, levels: int) -> float:
    flat = vectors.flatten(0, 1)
    return float((flat - quantizer.decode(quantizer.encode(flat)[:levels])).square().mean())


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(2, 9), min_size=1, max_size=5), data=st.data())
def test_codes_and_digits_are_each_others_inverse(values: list[int], data: st.DataObject) -> None:
    quantizer = ResidualFSQ(1, values, 4)
    assert quantizer.vocab_size == math.prod(values)
    codes = torch.arange(quantizer.vocab_size)
    digits = quantizer.codes_to_digits(codes)
    assert torch.equal(quantizer.digits_to_codes(digits), codes)
    assert (digits >= 0).all()
    assert (digits < torch.tensor(values)).all()
    some = torch.tensor([data.draw(st.integers(0, most - 1)) for most in values])
    assert torch.equal(quantizer.codes_to_digits(quantizer.digits_to_codes(some)), some)


def test_every_finite_scalar_code_can_be_said_and_is_heard_as_itself() -> None:
    """With one level that only spreads its input out, a code's own vector has that code."""
    torch.manual_seed(0)
    quantizer = ResidualFSQ(1, (3, 4, 5), 3)
    with torch.no_grad():
        quantizer.down[0].weight.copy_(torch.eye(3))
        quantizer.down[0].bias.zero_()
        quantizer.up[0].weight.copy_(torch.eye(3))
    codes = torch.arange(60)
    digits = quantizer.codes_to_digits(codes)
    # What the squashing turns into exactly that digit, or near it at the ends.
    vectors = torch.logit((digits / torch.tensor([2, 3, 4])).clamp(0.01, 0.99)) / 2
    assert torch.equal(quantizer.encode(vectors)[0], codes)
    assert quantizer.decode(codes[None]).unique(dim=0).shape == (60, 3)


@pytest.mark.parametrize("kind", ["rvq", "fsq"])
def test_training_and_use_give_the_same_codes(kind: str) -> None:
    torch.manual_seed(0)
    quantizer: ResidualVQ | ResidualFSQ = (
        _learnt()[0] if kind == "rvq" else ResidualFSQ(LEVELS, (4, 4, 4), DIM)
    )
    vectors = _vectors(99)
    found = quantizer(vectors, ALL)
    flat = quantizer.encode(vectors.flatten(0, 1))
    # Rows together or apart: near ties may fall the other way by a last bit.
    same = found.codes == flat.unflatten(1, (4, 100)).transpose(0, 1)
    assert same.double().mean() > 0.99
    assert found.codes.unique().numel() > (50 if kind == "rvq" else 20)
    decoded = quantizer.decode(found.codes.transpose(0, 1).flatten(1)).unflatten(0, (4, 100))
    assert torch.allclose(decoded, found.vectors, atol=1e-4)


def test_every_further_level_comes_nearer() -> None:
    quantizer, _ = _learnt()
    errors = [_error(_vectors(99), quantizer, levels) for levels in (1, 2, 3)]
    assert errors[2] < 0.8 * errors[1]
    assert errors[1] < 0.8 * errors[0]


def test_rounded_numbers_learn_by_gradient_alone() -> None:
    torch.manual_seed(0)
    quantizer = ResidualFSQ(LEVELS, (4, 4, 4), DIM)
    before = _error(_vectors(99), quantizer, LEVELS)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.03)
    for step in range(60):
        vectors = _vectors(step)
        found = quantizer(vectors, ALL)
        optimizer.zero_grad()
        ((found.vectors - vectors).square().mean() + found.loss).backward()
        optimizer.step()
    assert _error(_vectors(99), quantizer, LEVELS) < 0.3 * before
    assert _error(_vectors(99), quantizer, LEVELS) < _error(_vectors(99), quantizer, 1)


def test_gradients_pass_codebooks_straight() -> None:
    quantizer, _ = _learnt()
    vectors = _vectors(99).requires_grad_()
    weights = torch.randn(vectors.shape, generator=_generator())
    (quantizer(vectors, ALL).vectors * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


@pytest.mark.parametrize("kind", ["rvq", "fsq"])
def test_a_row_uses_no_more_levels_than_it_may(kind: str) -> None:
    torch.manual_seed(0)
    quantizer: ResidualVQ | ResidualFSQ = (
        _learnt()[0] if kind == "rvq" else ResidualFSQ(LEVELS, (4, 4, 4), DIM)
    )
    vectors = _vectors(99)
    found = quantizer(vectors, torch.tensor([0, 1, 2, 3]))
    assert torch.allclose(found.vectors[0], torch.zeros(100, DIM), atol=1e-6)
    for levels in (1, 2, 3):
        expected = quantizer.decode(found.codes[levels, :levels])
        assert torch.allclose(found.vectors[levels], expected, atol=1e-5)


def test_fewer_levels_are_drawn_for_the_share_of_rows_asked_for() -> None:
    drawn = used_levels(8, 10_000, 0.25, _generator())
    assert torch.equal(drawn, used_levels(8, 10_000, 0.25, _generator()))
    assert drawn.min() == 1
    assert drawn.max() == 8
    # One in eight of those that are drawn has all of them again.
    assert 0.20 < float((drawn < 8).double().mean()) < 0.24
    assert (used_levels(8, 100, 0.0, _generator()) == 8).all()


def test_nothing_is_quantized_until_k_means_has_seen_enough() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(LEVELS, VOCAB, DIM)
    learner = CodebookLearner(quantizer, warmup=3)
    ready = [learner.prepare(quantizer, _vectors(step), _generator()) for step in range(5)]
    assert ready == [False, False, False, True, True]
    codes = quantizer(_vectors(99), ALL).codes
    assert (perplexity(codes, VOCAB) > 0.6 * VOCAB).all()


def test_fewer_vectors_than_codes_start_too() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(LEVELS, 256, DIM)
    learner = CodebookLearner(quantizer, warmup=0)
    assert learner.prepare(quantizer, _vectors()[:1, :9], _generator())
    assert torch.isfinite(quantizer.codebooks).all()


def test_codebooks_follow_vectors_that_move() -> None:
    quantizer, learner = _learnt()
    moved = [_vectors(100 + step) + 20 for step in range(60)]
    before = _error(moved[-1], quantizer, 1)
    for step, vectors in enumerate(moved[:-1]):
        learner.update(quantizer, quantizer(vectors, ALL), _generator(step))
    assert _error(moved[-1], quantizer, 1) < 0.05 * before


def test_dead_codes_are_revived_where_they_are_of_use() -> None:
    quantizer, learner = _learnt()
    quantizer.codebooks[:, 5:] = 1000.0
    learner.sums.copy_(quantizer.codebooks * learner.counts[..., None])
    assert (perplexity(quantizer(_vectors(99), ALL).codes, VOCAB) < 6).all()
    dead = []
    for step in range(120):
        vectors = _vectors(100 + step)
        dead.append(int(learner.update(quantizer, quantizer(vectors, ALL), _generator(step))))
    assert sum(dead) >= LEVELS * (VOCAB - 5)
    assert (perplexity(quantizer(_vectors(99), ALL).codes, VOCAB) > 30).all()
    assert quantizer.codebooks.abs().max() < 100


def test_its_whole_state_is_in_buffers() -> None:
    """A checkpoint goes on exactly as the run would have gone on."""
    for steps in (2, 10):
        quantizer, learner = _learnt(steps)
        torch.manual_seed(1)
        other = ResidualVQ(LEVELS, VOCAB, DIM)
        resumed = CodebookLearner(other, warmup=3, reserve=1000)
        other.load_state_dict(copy.deepcopy(quantizer.state_dict()))
        resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
        for step in range(steps, steps + 4):
            for book, mover in ((quantizer, learner), (other, resumed)):
                vectors, generator = _vectors(step), _generator(step)
                if mover.prepare(book, vectors, generator):
                    mover.update(book, book(vectors, ALL), generator)
        assert torch.equal(quantizer.codebooks, other.codebooks)


def test_perplexity_counts_codes_in_even_use() -> None:
    codes = torch.stack([torch.zeros(2, 50), torch.arange(50).expand(2, 50)], dim=1).long()
    assert torch.allclose(perplexity(codes, VOCAB), torch.tensor([1.0, 50.0]))


@pytest.mark.slow
def test_processes_keep_equal_codebooks_and_count_what_all_saw() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_learn_together, args=(folder,), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["codebooks"], second["codebooks"])
    assert torch.equal(first["counts"], second["counts"])
    assert torch.allclose(first["counts"].sum(dim=1), torch.tensor(800.0), rtol=0.3)


def _learn_together(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    quantizer = ResidualVQ(LEVELS, VOCAB, DIM)
    learner = CodebookLearner(quantizer, warmup=1, decay=0.8)
    for step in range(20):
        vectors, generator = _vectors(2 * step + rank), _generator(2 * step + rank)
        if learner.prepare(quantizer, vectors, generator):
            learner.update(quantizer, quantizer(vectors, ALL), generator)
    torch.save(
        {"codebooks": quantizer.codebooks, "counts": learner.counts}, Path(folder) / f"{rank}.pt"
    )
    dist.destroy_process_group()
