"""Log-likelihoods by the probability-flow ODE."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.generative.ode import flow_velocity, integrate
from fitkit.generative.sampling_methods import OnStep
from fitkit.generative.score_matching import Score
from fitkit.generative.sde import SDE


def log_likelihood(
    sde: SDE, score: Score, x: Tensor, on_step: OnStep, *, num_probes: int | None, tolerance: float
) -> Tensor:
    """The log-density of each of ``x`` under the model, in nats: Song et al. 2021, equation 39.

    The ODE is solved from ``x`` at the smallest time to the prior, and the divergence of its
    velocity is integrated on the way. The divergence is Hutchinson's estimate (Skilling 1989,
    Hutchinson 1990): the mean of ``e J e`` over probes ``e`` of random signs, drawn once per call.
    The log-density is unbiased. ``num_probes`` is their number per sample;
    ``None``: the exact divergence, by a backward pass for each dimension. ``score`` must be
    differentiable.
    """
    size, velocity = len(x), flow_velocity(sde, score)
    if num_probes is None:
        probes, weight = _unit_probes(x), 1.0
    else:
        probes = [torch.randint_like(x, 2) * 2 - 1 for _ in range(num_probes)]
        weight = 1.0 / num_probes

    def field(t: float, state: Tensor) -> Tensor:
        values = state[:-size].reshape(x.shape)
        on_step(t, values)
        times = torch.full((size,), t, device=x.device, dtype=x.dtype)
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            change = velocity(times, values)
            grads = [torch.autograd.grad(change, values, e, retain_graph=True)[0] for e in probes]
        sums = [(g * e).flatten(1).sum(1) for g, e in zip(grads, probes, strict=True)]
        divergence = weight * torch.stack(sums).sum(0)
        return torch.cat([change.detach().flatten(), divergence])

    first = torch.cat([x.flatten(), x.new_zeros(size)])
    last = integrate(field, first, sde.smallest_time, sde.end_time, tolerance)
    return sde.prior_log_density(last[:-size].reshape(x.shape)) + last[-size:]


def _unit_probes(x: Tensor) -> list[Tensor]:
    """One probe for each dimension of a sample."""
    units = torch.eye(x[0].numel(), device=x.device, dtype=x.dtype)
    return [unit.reshape(1, *x.shape[1:]).expand_as(x) for unit in units]
