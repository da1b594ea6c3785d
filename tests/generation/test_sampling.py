import torch

from speechlm.config import SamplingConfig
from speechlm.generation.sampling import choose, seeded_noise

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -torch.inf]])


def draws(sampling: SamplingConfig, count: int = 4000) -> torch.Tensor:
    """Shares of each id among many draws."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([seeded_noise(generator, 5) for _ in range(count)])
    ids, _ = choose(LOGITS.expand(count, -1), sampling, noise)
    return torch.bincount(ids, minlength=5) / count


def test_temperature_zero_takes_the_most_probable() -> None:
    ids, certain = choose(LOGITS, SamplingConfig(), None)
    assert ids.tolist() == [0]
    assert certain.tolist() == [True]


def test_draws_follow_the_probabilities() -> None:
    for temperature in (1.0, 0.5):
        expected = (LOGITS[0] / temperature).softmax(dim=0)
        shares = draws(SamplingConfig(temperature=temperature))
        torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_top_k_draws_among_k() -> None:
    shares = draws(SamplingConfig(temperature=1.0, top_k=2))
    expected = torch.tensor([*LOGITS[0, :2].softmax(dim=0), 0, 0, 0])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_top_p_draws_among_those_that_hold_p() -> None:
    # Shares are 0.61, 0.23, 0.14, 0.03: the first two hold 0.84.
    assert (draws(SamplingConfig(temperature=1.0, top_p=0.83)) > 0).tolist() == [True] * 2 + [
        False
    ] * 3
    assert (draws(SamplingConfig(temperature=1.0, top_p=0.6)) > 0).sum() == 1
    assert (draws(SamplingConfig(temperature=1.0, top_p=1.0)) > 0).sum() == 4


def test_choices_that_rounding_could_turn_over_are_uncertain() -> None:
    near = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [1.0, 2.0, 0.0]])
    assert choose(near, SamplingConfig(), None)[1].tolist() == [False, True]
    # The same at the edge of top-k and of top-p: who may be drawn hangs on the last bit.
    noise = torch.zeros(2, 3)
    by_count = SamplingConfig(temperature=1.0, top_k=1)
    assert choose(near, by_count, noise)[1].tolist() == [False, True]
    half = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]))
    by_share = SamplingConfig(temperature=1.0, top_p=0.5)
    assert choose(half, by_share, noise)[1].tolist() == [False, True]
