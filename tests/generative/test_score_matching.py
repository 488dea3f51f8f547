from __future__ import annotations

import pytest
import torch

from fitkit import DataError
from fitkit.generative import VESDE, VPSDE, DenoisingScoreMatching

X = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(1))


def zero(t, x, *conditions):
    return torch.zeros_like(x)


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_a_model_that_gives_nothing_has_loss_1(divide_by_std):
    loss = DenoisingScoreMatching(VPSDE(), divide_by_std)
    assert loss(zero, X).item() == pytest.approx(1.0, abs=0.02)


def test_both_conventions_are_one_loss():
    sde = VPSDE()

    def scaled(t, x):
        return -x * t[:, None]

    def plain(t, x):
        return scaled(t, x) / sde.std(t)[:, None]

    losses = []
    for model, divide_by_std in ((scaled, True), (plain, False)):
        torch.manual_seed(2)
        losses.append(DenoisingScoreMatching(sde, divide_by_std)(model, X[:100]))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0)], ids=["VP", "VE"])
def test_the_true_score_has_the_smallest_loss(sde):
    """Of standard normal data the score at ``t`` is ``-x / (scale^2 + std^2)``."""
    loss = DenoisingScoreMatching(sde)

    def model(factor):
        def output(t, x):
            scale, std = sde.mean_scale(t)[:, None], sde.std(t)[:, None]
            return -factor * std * x / (scale**2 + std**2)

        return output

    values = []
    for factor in (0.8, 1.0, 1.2):
        torch.manual_seed(3)
        values.append(loss(model(factor), X).item())
    assert values[1] < min(values[0], values[2])


def test_likelihood_weighting_weights_times():
    sde = VPSDE(smallest_time=0.1)
    torch.manual_seed(4)
    found = DenoisingScoreMatching(sde, likelihood_weighting=True)(zero, X).item()
    t = torch.linspace(0.1, 1.0, 1000)
    expected = (sde.diffusion(t) / sde.std(t)).square().mean().item()
    assert found == pytest.approx(expected, rel=0.03)


def test_conditions_reach_the_model_and_times_lie_in_range():
    seen = []

    def model(t, x, *conditions):
        seen.append((t.min().item(), t.max().item(), conditions))
        return x

    sde = VPSDE(smallest_time=0.25)
    DenoisingScoreMatching(sde)(model, X, 1, 2)
    ((low, high, conditions),) = seen
    assert 0.25 <= low < 0.26
    assert 0.99 < high <= 1.0
    assert conditions == (1, 2)


@pytest.mark.parametrize(
    "x", [{"x": X}, torch.arange(4), torch.randn(4)], ids=["mapping", "integers", "one dimension"]
)
def test_batches_that_cannot_be_used(x):
    with pytest.raises(DataError, match=r"must be x or \(x, \*conditions\) with floating x"):
        DenoisingScoreMatching(VPSDE())(zero, x)


@pytest.mark.parametrize("output", [lambda x: x[:, :1], lambda x: (x,), lambda x: x.sum()])
def test_outputs_that_cannot_be_a_score(output):
    with pytest.raises(DataError, match="must return a tensor shaped as x"):
        DenoisingScoreMatching(VPSDE())(lambda t, x: output(x), X)
