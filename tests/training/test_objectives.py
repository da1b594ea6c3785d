import pytest
import torch
from torch.nn import functional as F

from speechlm.training.objectives import next_unit_objective


def test_sums_are_those_of_the_weighted_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=generator)
    targets = torch.tensor([int(logits[0].argmax()), 1, int(logits[2].argmax()), 3])
    targets[3] = int(logits[3].argmin())
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0])
    objective = next_unit_objective(logits, targets, weights)
    losses = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(objective.loss, losses[0] + 0.5 * losses[2] + 2 * losses[3])
    assert objective.weight == 3.5
    assert objective.correct == 1.5


def test_gradient_comes_from_the_loss_alone() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    objective = next_unit_objective(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    assert not objective.correct.requires_grad
    objective.loss.backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])
    assert logits.grad[1].tolist() == [0, 0, 0]


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(5000, 4, dtype=torch.bfloat16)
    targets = torch.zeros(5000, dtype=torch.int64)
    objective = next_unit_objective(logits, targets, torch.ones(5000))
    assert objective.loss.dtype == torch.float32
    assert objective.loss.item() == pytest.approx(5000 * 1.3862944, rel=1e-5)
