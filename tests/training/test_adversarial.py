"""One backward pass trains generator and discriminators, each by its own terms alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speechlm.training.adversarial import Discriminators, MelLoss, adversarial_losses


@pytest.fixture
def real() -> Tensor:
    return 0.1 * torch.randn(2, 4001, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def discriminators() -> Discriminators:
    torch.manual_seed(1)
    return Discriminators(channels=2)


@pytest.fixture
def generator() -> nn.Module:
    torch.manual_seed(2)
    return nn.Linear(4001, 4001)


def test_one_backward_gives_each_side_the_gradient_of_its_own_terms(
    real: Tensor, discriminators: Discriminators, generator: nn.Module
) -> None:
    terms = adversarial_losses(discriminators, real, generator(real))
    makers, critics = list(generator.parameters()), list(discriminators.parameters())
    own = torch.autograd.grad(terms.generator + terms.features, makers, retain_graph=True)
    theirs = torch.autograd.grad(terms.discriminators, critics, retain_graph=True)
    (terms.generator + terms.features + terms.discriminators).backward()
    for parameter, expected in zip([*makers, *critics], [*own, *theirs], strict=True):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, expected)


def test_neither_side_s_terms_reach_the_other(
    real: Tensor, discriminators: Discriminators, generator: nn.Module
) -> None:
    terms = adversarial_losses(discriminators, real, generator(real))
    for loss, parameters in (
        (terms.generator + terms.features, discriminators.parameters()),
        (terms.discriminators, generator.parameters()),
    ):
        gradients = torch.autograd.grad(
            loss, list(parameters), allow_unused=True, retain_graph=True
        )
        assert all(gradient is None for gradient in gradients)


def test_the_terms_are_least_squares_over_every_discriminator(
    real: Tensor, discriminators: Discriminators
) -> None:
    fake = real.flip(1)
    terms = adversarial_losses(discriminators, real, fake)
    pairs = list(zip(discriminators(real), discriminators(fake), strict=True))
    assert len(pairs) == 8
    torch.testing.assert_close(
        terms.generator, sum((1 - score).square().mean() for _, (score, _) in pairs)
    )
    torch.testing.assert_close(
        terms.discriminators,
        sum((1 - a).square().mean() + b.square().mean() for (a, _), (b, _) in pairs),
    )
    same = adversarial_losses(discriminators, real, real)
    assert same.features < 1e-6
    assert terms.features > 100 * same.features


def test_discriminators_learn_to_tell_noise_from_tones() -> None:
    torch.manual_seed(3)
    discriminators = Discriminators(periods=(2, 3), num_scales=1, channels=2)
    optimizer = torch.optim.Adam(discriminators.parameters(), lr=2e-3)
    real = torch.sin(torch.arange(1000) * torch.tensor([[0.1], [0.2]]))
    fake = torch.randn(2, 1000)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = adversarial_losses(discriminators, real, fake).discriminators
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 24_000, 48_000])
def test_every_mel_band_hears_something(sample_rate: int) -> None:
    loss = MelLoss(sample_rate)
    for window in loss.windows:
        assert loss.get_buffer(f"filters_{window}").sum(dim=1).min() > 0.99


def test_the_mel_loss_grows_with_the_difference_and_is_nothing_without(real: Tensor) -> None:
    loss = MelLoss(16_000)
    near, far = (real + size * torch.randn_like(real) for size in (0.01, 0.5))
    assert loss(real, real) == 0
    assert 0 < loss(real, near) < loss(real, far)


@pytest.mark.parametrize("length", [1, 100, 2048])
def test_the_mel_loss_and_its_gradient_are_finite_on_short_and_silent_waves(length: int) -> None:
    fake = torch.zeros(1, length, requires_grad=True)
    loss = MelLoss(16_000)(torch.ones(1, length), fake)
    loss.backward()
    assert fake.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(fake.grad).all()


def test_the_mel_loss_is_exact_in_mixed_precision_too(real: Tensor) -> None:
    fake = real.flip(1).bfloat16()
    loss = MelLoss(16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(real, fake)
    assert mixed == loss(real, fake.float())


def test_checkpoints_need_not_keep_the_mel_filters() -> None:
    assert MelLoss(16_000).state_dict() == {}
