"""Log-likelihoods of Gaussian data against those in closed form."""

from __future__ import annotations

import pytest
import torch

from fitkit.generative import VPSDE
from fitkit.generative.likelihood import log_likelihood


def measure(sde, gaussian, x, on_step, num_probes=None, tolerance=1e-6):
    score = gaussian.score(sde)
    return log_likelihood(sde, score, x, on_step, num_probes=num_probes, tolerance=tolerance)


def test_it_is_the_density_of_the_data(wide_sde, gaussian, no_op):
    x = gaussian.law.sample((50,))
    found = measure(wide_sde, gaussian, x, no_op)
    assert (found - gaussian.law.log_prob(x)).abs().max() < 1e-3


def test_the_prior_s_distance_from_the_data_is_all_that_remains(sde, gaussian, no_op):
    x = gaussian.law.sample((50,))
    found = measure(sde, gaussian, x, no_op)
    exact = gaussian.flow_log_density(sde, x)
    assert (found - exact).abs().max() < 2e-5
    assert (exact - gaussian.law.log_prob(x)).abs().max() < 0.1


def test_errors_shrink_with_the_tolerance(gaussian, no_op):
    sde = VPSDE()
    x = gaussian.law.sample((20,))
    exact = gaussian.flow_log_density(sde, x)
    errors = [
        (measure(sde, gaussian, x, no_op, tolerance=t) - exact).abs().max().item()
        for t in (1e-2, 1e-4, 1e-7)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-6


def test_hutchinson_s_estimate_is_unbiased(gaussian, no_op):
    """The mean over 2,000 probes is within four standard errors."""
    sde = VPSDE()
    point = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    found = measure(sde, gaussian, point.expand(2000, 2), no_op, num_probes=1, tolerance=1e-5)
    spread = found.std().item()
    assert spread > 0.05  # the covariance is not diagonal, so single estimates differ
    exact = gaussian.flow_log_density(sde, point).item()
    assert abs(found.mean().item() - exact) < 4 * spread / 2000**0.5


def test_more_probes_spread_less(gaussian, no_op):
    sde = VPSDE()
    x = torch.zeros(400, 2, dtype=torch.float64)
    spreads = [
        measure(sde, gaussian, x, no_op, num_probes=n, tolerance=1e-4).std().item() for n in (1, 16)
    ]
    assert spreads[1] == pytest.approx(spreads[0] / 4, rel=0.2)


def test_images_in_single_precision(no_op):
    """Standard normal data stays that under VP, whatever its shape."""
    sde, x = VPSDE(), torch.randn(3, 1, 2, 4)
    for num_probes in (1, None):
        found = log_likelihood(
            sde, lambda t, x: -x, x, no_op, num_probes=num_probes, tolerance=1e-5
        )
        exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
