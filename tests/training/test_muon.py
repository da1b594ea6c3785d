"""Muon orthogonalises, leaves the rest to AdamW, and its state survives a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from speechlm.training.muon import MuonAdamW, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 5), (1, 5, 16)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_stacking_changes_nothing() -> None:
    matrices = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    assert torch.allclose(orthogonalise(matrices).float(), alone.float(), atol=2e-2)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def _optimizer(model: nn.Sequential) -> MuonAdamW:
    hidden = [model[0].weight]
    rest = [p for p in model.parameters() if p is not model[0].weight]
    groups = [{"params": rest}, {"params": hidden, "muon": True}]
    return MuonAdamW(groups, lr=0.03, betas=(0.9, 0.98), weight_decay=0.0)


def _step(model: nn.Sequential, optimizer: MuonAdamW, x: Tensor, y: Tensor) -> float:
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_it_learns_and_resumes_exactly() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :1] * x[:, 1:2]
    model = _model()
    optimizer = _optimizer(model)
    losses = [_step(model, optimizer, x, y) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]

    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = [_step(model, optimizer, x, y) for _ in range(5)]
    other = _model()
    resumed = _optimizer(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert [_step(other, resumed, x, y) for _ in range(5)] == expected


def test_every_group_is_stepped() -> None:
    model = _model()
    optimizer = _optimizer(model)
    before = copy.deepcopy(model.state_dict())
    _step(model, optimizer, torch.ones(4, 6), torch.ones(4, 1))
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
