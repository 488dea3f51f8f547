"""Samples of Gaussian data, whose score is known: they have its mean and covariance."""

from __future__ import annotations

import pytest
import torch

from fitkit import ConfigurationError
from fitkit.generative import VPSDE
from fitkit.generative.sampling_methods import (
    euler_maruyama,
    predictor_corrector,
    probability_flow_ode,
)

SAMPLES = 16_000  # standard errors of mean and covariance up to 0.011
METHODS = {
    "euler_maruyama": euler_maruyama,
    # a small signal-to-noise ratio: its bias of 0.05^2 is below the standard error
    "predictor_corrector": lambda *args, steps: predictor_corrector(
        *args, steps=steps, signal_to_noise=0.05
    ),
}


def error(gaussian, drawn):
    """The largest error of mean and covariance."""
    mean = (drawn.mean(0) - gaussian.mean).abs().max()
    return max(mean, (drawn.T.cov() - gaussian.covariance).abs().max()).item()


@pytest.mark.parametrize("method", METHODS)
def test_errors_shrink_with_the_number_of_steps(sde, gaussian, no_op, method):
    errors = {}
    for steps in (12, 36, 150):
        x = sde.prior_sample((SAMPLES, 2), dtype=torch.float64)
        drawn = METHODS[method](sde, gaussian.score(sde), x, no_op, steps=steps)
        errors[steps] = error(gaussian, drawn)
    assert errors[12] > 2 * errors[36] > 0
    assert errors[36] < 0.07
    assert errors[150] < 0.035


def test_the_flow_carries_the_prior_to_the_data(sde, gaussian, no_op):
    x = sde.prior_sample((SAMPLES, 2), dtype=torch.float64)
    drawn = probability_flow_ode(sde, gaussian.score(sde), x, no_op, tolerance=1e-4)
    assert error(gaussian, drawn) < 0.03


def test_the_flow_s_error_shrinks_with_its_tolerance(gaussian, no_op):
    """In closed form the flow stretches each axis of the data's covariance."""
    sde = VPSDE()
    x = sde.prior_sample((500, 2), dtype=torch.float64)
    a, s = (f(torch.tensor(sde.smallest_time)) for f in (sde.mean_scale, sde.std))
    b, r = (f(torch.tensor(1.0, dtype=torch.float64)) for f in (sde.mean_scale, sde.std))
    ratio = ((a**2 * gaussian.variances + s**2) / (b**2 * gaussian.variances + r**2)).sqrt()
    exact = (((x - b * gaussian.mean) @ gaussian.axes) * ratio) @ gaussian.axes.T
    exact = exact + a * gaussian.mean
    errors = [
        (probability_flow_ode(sde, gaussian.score(sde), x, no_op, tolerance=t) - exact)
        .abs()
        .max()
        .item()
        for t in (1e-2, 1e-4, 1e-7)
    ]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-5


def test_steps_are_seen_and_the_last_adds_no_noise(gaussian):
    sde, seen = VPSDE(), []
    x = sde.prior_sample((4, 2), dtype=torch.float64)
    drawn = euler_maruyama(
        sde, gaussian.score(sde), x, lambda t, values: seen.append((t, values)), steps=5
    )
    times = [t for t, _ in seen]
    assert times == sorted(times, reverse=True)
    assert len(times) == 5
    assert times[-1] == pytest.approx(sde.smallest_time)
    assert torch.equal(seen[-1][1], drawn)


def test_the_scores_are_asked_for_at_times_of_the_batch():
    sde = VPSDE()
    asked = []

    def score(t, x):
        asked.append((t.shape, t.dtype, x.shape))
        return -x

    x = torch.randn(3, 1, 2, 2)
    for draw in (euler_maruyama, predictor_corrector):
        assert draw(sde, score, x, lambda *_: None, steps=2).shape == x.shape
    assert probability_flow_ode(sde, score, x, lambda *_: None).dtype == torch.float32
    assert set(asked) == {((3,), torch.float32, (3, 1, 2, 2))}


def test_without_corrector_steps_it_is_the_predictor(gaussian, no_op):
    sde = VPSDE()
    x = sde.prior_sample((4, 2), dtype=torch.float64)
    drawn = []
    for draw, options in ((euler_maruyama, {}), (predictor_corrector, {"corrector_steps": 0})):
        torch.manual_seed(3)
        drawn.append(draw(sde, gaussian.score(sde), x, no_op, steps=7, **options))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "options",
    [{"corrector_steps": -1}, {"signal_to_noise": 0.0}, {"signal_to_noise": float("nan")}],
)
def test_options_out_of_range(options, no_op):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        predictor_corrector(VPSDE(), lambda t, x: -x, torch.randn(2, 2), no_op, steps=2, **options)


@pytest.mark.parametrize("tolerance", [0, -1.0, "small", True])
def test_a_tolerance_out_of_range(tolerance, no_op):
    with pytest.raises(ConfigurationError, match="tolerance must be"):
        probability_flow_ode(
            VPSDE(), lambda t, x: -x, torch.randn(2, 2), no_op, tolerance=tolerance
        )
