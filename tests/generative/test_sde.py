from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit import ConfigurationError
from fitkit.generative import SDE, VESDE, VPSDE, SubVPSDE

ALL = (VPSDE, SubVPSDE, VESDE)
TIMES = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)


@pytest.mark.parametrize("cls", ALL)
def test_the_marginal_solves_the_equations_of_mean_and_variance(cls):
    """``m' = f m`` and ``v' = 2 f v + g^2``, with ``f`` the linear coefficient of the drift."""
    sde = cls()
    ones = torch.ones(len(TIMES), 1, dtype=torch.float64)
    rate = sde.drift(TIMES, ones)[:, 0]
    mean, variance = sde.mean_scale(TIMES), sde.std(TIMES).square()
    step = TIMES[1]
    by_mean = (mean[2:] - mean[:-2]) / (2 * step)
    by_variance = (variance[2:] - variance[:-2]) / (2 * step)
    right = 2 * rate * variance + sde.diffusion(TIMES).square()
    torch.testing.assert_close(by_mean, (rate * mean)[1:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_variance, right[1:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", ALL)
def test_it_begins_at_the_data_and_ends_at_the_prior(cls):
    sde = cls()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert sde.std(ends)[0] == 0.0
    assert sde.mean_scale(ends)[0] == 1.0
    assert sde.std(ends)[1].item() == pytest.approx(sde.prior_std, rel=1e-4)


def test_known_values():
    t = torch.tensor(0.5, dtype=torch.float64)
    log_mean = -0.25 * 0.25 * 19.9 - 0.5 * 0.5 * 0.1  # as in the paper's code
    assert VPSDE().mean_scale(t).item() == pytest.approx(math.exp(log_mean))
    assert VPSDE().std(t).item() == pytest.approx(math.sqrt(1 - math.exp(2 * log_mean)))
    assert SubVPSDE().std(t).item() == pytest.approx(1 - math.exp(2 * log_mean))
    sigma = 0.01 * 5000**0.5
    assert VESDE().std(t).item() == pytest.approx(math.sqrt(sigma**2 - 0.01**2))
    expected = sigma * math.sqrt(2 * math.log(5000))
    assert VESDE().diffusion(t).item() == pytest.approx(expected)


@given(st.floats(0.0, 1.0), st.sampled_from(ALL))
def test_sub_vp_is_below_vp_and_all_are_finite(t, cls):
    time = torch.tensor([t])
    assert SubVPSDE().std(time) <= VPSDE().std(time)
    sde = cls()
    for value in (sde.std(time), sde.diffusion(time), sde.mean_scale(time)):
        assert value.shape == (1,)
        assert torch.isfinite(value).all()
        assert (value >= 0).all()


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4)])
def test_shapes_and_types(cls, dtype, shape):
    sde, x = cls(), torch.randn(shape, dtype=dtype)
    t = torch.rand(3, dtype=dtype)
    mean, std = sde.marginal(t, x)
    assert (mean.shape, mean.dtype, std.dtype) == (shape, dtype, dtype)
    assert std.shape == (3, *[1] * (len(shape) - 1))
    assert sde.drift(t, x).shape == shape
    assert sde.marginal(t[0], x)[0].shape == shape  # one time for all
    assert sde.prior_log_density(x).shape == (3,)
    assert sde.prior_sample(shape, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("cls", ALL)
def test_the_prior(cls):
    sde = cls()
    generator = torch.Generator().manual_seed(3)
    draws = sde.prior_sample((20_000, 2), generator=generator, dtype=torch.float64)
    assert draws.std().item() == pytest.approx(sde.prior_std, rel=0.02)
    again = sde.prior_sample(
        (20_000, 2), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    assert torch.equal(draws, again)
    law = torch.distributions.Normal(0.0, sde.prior_std)
    torch.testing.assert_close(sde.prior_log_density(draws), law.log_prob(draws).sum(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(beta_min=0.0), "beta_min must be above 0"),
        (lambda: VPSDE(beta_min=3.0, beta_max=2.0), "at most beta_max, received 3.0 and 2.0"),
        (lambda: VESDE(sigma_min=-1.0), "sigma_min must be above 0"),
        (lambda: VESDE(sigma_min=2.0, sigma_max=2.0), "sigma_max must be above sigma_min"),
        (lambda: SubVPSDE(beta_max=math.nan), "beta_max must be a finite number"),
        (lambda: VPSDE(smallest_time=0.0), "smallest_time must lie in"),
        (lambda: VESDE(smallest_time=1.0), "smallest_time must lie in"),
        (lambda: VPSDE(beta_min=True), "beta_min must be a finite number"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_process_needs_its_four_functions():
    with pytest.raises(TypeError, match="abstract"):
        SDE()
