"""Sampling methods: from draws of the prior to data, by a score.

Each takes an SDE, its score ``(t, x) -> score``, draws ``x`` of the prior, ``(batch, ...)``, and
``on_step``, which is called with time and values before or after each evaluation of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.errors import ConfigurationError
from fitkit.generative.ode import flow_velocity, integrate
from fitkit.generative.score_matching import Score
from fitkit.generative.sde import SDE, expand

OnStep = Callable[[float, Tensor], None]


def euler_maruyama(sde: SDE, score: Score, x: Tensor, on_step: OnStep, *, steps: int) -> Tensor:
    """Solve the reverse SDE (Song et al. 2021, equation 6) in equal steps of time.

    The last step adds no noise. Errors of mean and covariance fall as ``1 / steps``.
    """
    mean = x
    for now, then in _times(sde, steps):
        x, mean = _reverse_step(sde, score, now, now - then, x)
        on_step(then, mean)
    return mean


def predictor_corrector(
    sde: SDE,
    score: Score,
    x: Tensor,
    on_step: OnStep,
    *,
    steps: int,
    corrector_steps: int = 1,
    signal_to_noise: float = 0.16,
) -> Tensor:
    """Langevin steps before each reverse step: Song et al. 2021, algorithms 4 and 5 (alpha = 1).

    The variance of the samples is too large by a factor of about ``1 + signal_to_noise^2``,
    whatever the number of steps. ``signal_to_noise`` is the size of a Langevin step relative to its
    noise.
    """
    require_count("corrector_steps", corrector_steps, minimum=0)
    require_number("signal_to_noise", signal_to_noise)
    if signal_to_noise <= 0:
        raise ConfigurationError(f"signal_to_noise must be above 0, received {signal_to_noise!r}.")
    mean = x
    for now, then in _times(sde, steps):
        for _ in range(corrector_steps):
            x = _langevin_step(score, now, signal_to_noise, x)
        x, mean = _reverse_step(sde, score, now, now - then, x)
        on_step(then, mean)
    return mean


def probability_flow_ode(
    sde: SDE, score: Score, x: Tensor, on_step: OnStep, *, tolerance: float = 1e-5
) -> Tensor:
    """Solve the probability-flow ODE: the same draw of the prior always gives the same sample."""
    velocity = flow_velocity(sde, score)

    def field(t: float, flat: Tensor) -> Tensor:
        values = flat.reshape(x.shape)
        on_step(t, values)
        return velocity(_at(t, values), values).flatten()

    return integrate(field, x.flatten(), sde.end_time, sde.smallest_time, tolerance).reshape(
        x.shape
    )


METHODS: Mapping[str, Callable[..., Tensor]] = {
    "euler_maruyama": euler_maruyama,
    "predictor_corrector": predictor_corrector,
    "ode": probability_flow_ode,
}


def _times(sde: SDE, steps: int) -> pairwise[tuple[float, float]]:
    """Each step's time and the next step's."""
    length = sde.end_time - sde.smallest_time
    return pairwise([sde.end_time - length * number / steps for number in range(steps + 1)])


def _at(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, device=x.device, dtype=x.dtype)


def _reverse_step(
    sde: SDE, score: Score, now: float, length: float, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Values after a step back in time, with and without its noise."""
    t = _at(now, x)
    diffusion = expand(sde.diffusion(t), x)
    mean = x - length * (sde.drift(t, x) - diffusion.square() * score(t, x))
    return mean + math.sqrt(length) * diffusion * torch.randn_like(x), mean


def _langevin_step(score: Score, now: float, signal_to_noise: float, x: Tensor) -> Tensor:
    gradient, noise = score(_at(now, x), x), torch.randn_like(x)
    ratio = _mean_norm(noise) / _mean_norm(gradient).clamp_min(torch.finfo(x.dtype).tiny)
    size = 2 * (signal_to_noise * ratio).square()
    return x + size * gradient + (2 * size).sqrt() * noise


def _mean_norm(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.mean()
