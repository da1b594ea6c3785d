import pytest
import torch
from torch.nn import functional as F

from speechlm.training.objectives import next_column_objective


def test_sums_are_those_of_the_weighted_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=generator)
    targets = torch.tensor([int(logits[0].argmax()), 1, int(logits[2].argmax()), 3])
    targets[3] = int(logits[3].argmin())
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0])
    objective = next_column_objective([logits], targets[:, None], weights[:, None])
    losses = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(objective.losses, (losses[0] + losses[2] / 2 + 2 * losses[3])[None])
    assert objective.weights.tolist() == [3.5]
    assert objective.correct.tolist() == [1.5]


def test_rows_of_any_size_are_summed_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(5, size, generator=generator) for size in (7, 3)]
    targets = torch.randint(3, (5, 2), generator=generator)
    weights = torch.rand(5, 2, generator=generator)
    both = next_column_objective(scores, targets, weights)
    for row, logits in enumerate(scores):
        one = next_column_objective([logits], targets[:, [row]], weights[:, [row]])
        assert both.losses[row] == one.losses[0]
        assert both.weights[row] == one.weights[0]
        assert both.correct[row] == one.correct[0]


def test_gradient_comes_from_the_loss_alone() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    targets, weights = torch.tensor([[0], [1]]), torch.tensor([[1.0], [0.0]])
    objective = next_column_objective([logits], targets, weights)
    assert not objective.correct.requires_grad
    objective.losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])
    assert logits.grad[1].tolist() == [0, 0, 0]


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(5000, 4, dtype=torch.bfloat16)
    targets = torch.zeros(5000, 1, dtype=torch.int64)
    objective = next_column_objective([logits], targets, torch.ones(5000, 1))
    assert objective.losses.dtype == torch.float32
    assert objective.losses.item() == pytest.approx(5000 * 1.3862944, rel=1e-5)
