"""The probability-flow ODE, and the adaptive solver that integrates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import ConfigurationError, SamplingError, missing_package
from fitkit.generative.score_matching import Score
from fitkit.generative.sde import SDE, expand


def flow_velocity(sde: SDE, score: Score) -> Score:
    """``dx/dt`` of the probability-flow ODE of ``sde``: Song et al. 2021, equation 13."""

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        weight = 0.5 * expand(sde.diffusion(t).square(), x)
        return sde.drift(t, x) - weight * score(t, x)

    return velocity


def integrate(
    field: Callable[[float, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    tolerance: float,
) -> Tensor:
    """The solution of ``dy/dt = field(t, y)`` at ``end``, by the method of Dormand and Prince.

    ``state`` is the vector at ``start``, and ``tolerance`` the relative and absolute error of each
    step. The solver works in float64 on the host, as not every device has float64.

    Raises:
        ConfigurationError: scipy is not installed, or the tolerance is out of range.
        SamplingError: the tolerance cannot be reached.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ConfigurationError(f"tolerance must be a number above 0, received {tolerance!r}.")

    def to_numpy(vector: Tensor) -> Any:
        return vector.detach().cpu().double().numpy()

    def to_state(values: Any) -> Tensor:
        return torch.from_numpy(values).to(state.dtype).to(state.device)

    def numpy_field(t: float, values: Any) -> Any:
        return to_numpy(field(t, to_state(values)))

    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise missing_package("the probability-flow ODE", "scipy") from error
    solution: Any = solve_ivp(
        numpy_field, (start, end), to_numpy(state), method="RK45", rtol=tolerance, atol=tolerance
    )
    if not solution.success:
        raise SamplingError(
            f"the ODE could not be solved from t = {start:g} to {end:g}: {solution.message} Raise "
            f"tolerance, or check the model's score."
        )
    return to_state(solution.y[:, -1].copy())
