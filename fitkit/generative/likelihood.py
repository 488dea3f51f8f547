"""Log-likelihoods by the probability-flow ODE."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.generative.ode import integrate, probability_flow
from fitkit.generative.reverse import Watch
from fitkit.generative.score_matching import Score
from fitkit.generative.sde import SDE


def log_likelihood(
    sde: SDE, score: Score, x: Tensor, watch: Watch, *, num_probes: int | None, tolerance: float
) -> Tensor:
    """The log-density of each of ``x`` under the model, in nats: Song et al. 2021, equation 39.

    The ODE is followed from the smallest time, where ``x`` is taken to be, to the prior; along the
    way the divergence of its velocity is added up. The divergence is Hutchinson's estimate
    (Skilling 1989, Hutchinson 1990): the mean of ``e J e`` over probes ``e`` of random signs, drawn
    once per call. It is unbiased, also at the end.

    Args:
        sde: the process.
        score: ``(t, x) -> score``, differentiable.
        x: data, ``(batch, ...)``.
        watch: is called with time and values before each evaluation of the score.
        num_probes: probes per sample; ``None``: the exact divergence, by a backward pass for each
            dimension.
        tolerance: of the solver.

    Returns:
        a tensor ``(batch,)``.
    """
    size, velocity = len(x), probability_flow(sde, score)
    probes = _unit_probes(x) if num_probes is None else _random_signs(x, num_probes)
    weight = 1.0 if num_probes is None else 1.0 / num_probes

    def field(t: float, state: Tensor) -> Tensor:
        values = state[:-size].reshape(x.shape)
        watch(t, values)
        times = torch.full((size,), t, device=x.device, dtype=x.dtype)
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            change = velocity(times, values)
            along = [torch.autograd.grad(change, values, e, retain_graph=True)[0] for e in probes]
        sums = [(g * e).flatten(1).sum(1) for g, e in zip(along, probes, strict=True)]
        divergence = weight * torch.stack(sums).sum(0)
        return torch.cat([change.detach().flatten(), divergence])

    first = torch.cat([x.flatten(), x.new_zeros(size)])
    last = integrate(field, first, sde.smallest_time, sde.end_time, tolerance)
    return sde.prior_log_density(last[:-size].reshape(x.shape)) + last[-size:]


def _random_signs(x: Tensor, count: int) -> list[Tensor]:
    return [torch.randint_like(x, 2) * 2 - 1 for _ in range(count)]


def _unit_probes(x: Tensor) -> list[Tensor]:
    """One probe for each dimension of a sample."""
    units = torch.eye(x[0].numel(), device=x.device, dtype=x.dtype)
    return [unit.reshape(1, *x.shape[1:]).expand_as(x) for unit in units]
