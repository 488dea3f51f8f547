"""A Gaussian data set, whose scores and densities are known in closed form."""

from __future__ import annotations

import pytest
import torch

from fitkit.generative import VESDE, VPSDE, SubVPSDE


class Gaussian:
    """Data ``N(mean, covariance)`` in two dimensions, and what a process makes of it."""

    def __init__(self):
        self.mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
        self.covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
        self.variances, self.axes = torch.linalg.eigh(self.covariance)
        self.law = torch.distributions.MultivariateNormal(self.mean, self.covariance)

    def _at(self, sde, t):
        return sde.mean_scale(t)[:, None], sde.std(t)[:, None]

    def score(self, sde):
        """``(t, x) -> score``, exactly."""

        def score(t, x):
            scale, std = self._at(sde, t)
            along = (x - scale * self.mean) @ self.axes
            return -(along / (scale**2 * self.variances + std**2)) @ self.axes.T

        return score

    def flow_log_density(self, sde, x):
        """The exact solution of the probability-flow ODE, including the mismatch of the prior."""
        (first, last) = (
            torch.tensor([t], dtype=torch.float64) for t in (sde.smallest_time, sde.end_time)
        )
        (a, s), (b, r) = self._at(sde, first), self._at(sde, last)
        stretch = ((b**2 * self.variances + r**2) / (a**2 * self.variances + s**2)).sqrt()
        along = ((x - a * self.mean) @ self.axes) * stretch
        end = along @ self.axes.T + b * self.mean
        return sde.prior_log_density(end) + stretch.log().sum()


@pytest.fixture
def gaussian():
    return Gaussian()


SDES = {
    "VP": lambda **kwargs: VPSDE(**{"smallest_time": 1e-5, **kwargs}),
    "sub-VP": lambda **kwargs: SubVPSDE(**{"smallest_time": 1e-5, **kwargs}),
    "VE": lambda **kwargs: VESDE(**kwargs),
}


@pytest.fixture(params=SDES)
def sde(request):
    """Each SDE, with a small smallest time."""
    return SDES[request.param]()


@pytest.fixture(params=SDES)
def wide_sde(request):
    """Each SDE with a prior that is close to the marginal of data of size 1."""
    name = request.param
    return SDES[name](**({"sigma_max": 5000.0} if name == "VE" else {"beta_max": 40.0}))


def ignore(t, x):
    """A callback of steps that does nothing."""


@pytest.fixture
def no_op():
    return ignore
