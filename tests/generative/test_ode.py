"""The probability-flow ODE, and the adaptive solver."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from fitkit import ConfigurationError, SamplingError
from fitkit.generative.ode import flow_velocity, integrate

pytest.importorskip("scipy")


def test_the_velocity_is_drift_minus_half_the_squared_diffusion_times_the_score(sde):
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    velocity = flow_velocity(sde, lambda t, x: t[:, None, None] * x)(t, x)
    for row in range(2):  # each sample has its own time
        half = 0.5 * sde.diffusion(t[row]) ** 2
        expected = sde.drift(t[row], x[row]) - half * t[row] * x[row]
        assert torch.allclose(velocity[row], expected, rtol=1e-12)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_a_linear_equation_in_both_directions(start, end):
    state = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    solution = integrate(lambda t, y: 3 * y, state, start, end, 1e-9)
    assert torch.allclose(solution, state * math.exp(3 * (end - start)), rtol=1e-7)
    assert state.tolist() == [1.0, -2.0, 0.0]


def test_a_field_that_depends_on_time():
    solution = integrate(lambda t, y: torch.full_like(y, t), torch.zeros(1), 0.0, 2.0, 1e-6)
    assert solution.item() == pytest.approx(2.0, abs=1e-5)


def test_a_smaller_tolerance_takes_more_steps_and_has_a_smaller_error():
    errors, calls = [], []
    for tolerance in (1e-2, 1e-5, 1e-8):
        calls.append(0)

        def field(t, y):
            calls[-1] += 1
            return y * math.cos(10 * t)

        one = torch.ones(1, dtype=torch.float64)
        solution = integrate(field, one, 0.0, 1.0, tolerance)
        errors.append(abs(solution.item() - math.exp(math.sin(10) / 10)))
    assert errors[0] > errors[1] > errors[2]
    assert calls[0] < calls[1] < calls[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_field_and_the_solution_have_the_dtype_of_the_state(dtype):
    seen = set()

    def field(t, y):
        seen.add((y.dtype, y.shape))
        assert isinstance(t, float)
        return y

    state = torch.ones(5, dtype=dtype, requires_grad=True)
    solution = integrate(field, state, 0.0, 0.1, 1e-3)
    assert (solution.dtype, solution.shape) == (dtype, (5,))
    assert seen == {(dtype, (5,))}


@pytest.mark.parametrize("tolerance", [0, -1e-3, True, "1e-3", None, float("nan")])
def test_a_tolerance_has_to_be_above_0(tolerance):
    with pytest.raises(ConfigurationError, match="tolerance must be a number above 0, received"):
        integrate(lambda t, y: y, torch.ones(1), 0.0, 1.0, tolerance)


def test_a_field_that_grows_without_bound_is_an_error():
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(SamplingError, match=r"not be solved from t = 0 to 2:.*Raise tolerance"):
        integrate(lambda t, y: y.square(), one, 0.0, 2.0, 1e-6)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(ConfigurationError, match="pip install scipy"):
        integrate(lambda t, y: y, torch.ones(1), 0.0, 1.0, 1e-3)
