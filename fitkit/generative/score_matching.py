"""DenoisingScoreMatching: the loss that trains a model as a score, and the score it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import DataError
from fitkit.generative.sde import SDE, expand

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Train ``model(t, x, *conditions)`` towards the score of noisy data (Vincent 2011).

    The score is the gradient of the log-density of ``x_t`` by ``x_t``. For each sample the loss
    draws a time, uniformly between the smallest and the last, and noise ``z``. It is the mean over
    batch and dimensions of ``weight * (std * score + z)^2``: 1 for a model that returns 0, less as
    it learns. Song et al. 2021 (arXiv:2011.13456), equation 7, with ``weight = 1``.

    Args:
        sde: the process.
        divide_by_std: the score is the model's output divided by ``sde.std(t)``, so that the output
            is of size 1 at every time; otherwise the output is the score itself.
        likelihood_weighting: use the weight ``(g / std)^2``, which bounds the likelihood of the
            model (Song et al. 2021, arXiv:2101.09258) at some cost in the look of samples.
    """

    sde: SDE
    divide_by_std: bool = True
    likelihood_weighting: bool = False

    def score(self, model: Callable[..., Any], t: Tensor, x: Tensor, *conditions: Any) -> Tensor:
        """The model's score at ``x`` ``(batch, ...)`` and ``t`` ``(batch,)``, shaped as ``x``.

        Raises:
            DataError: the model's output has another shape than ``x``.
        """
        output = _require_like(model(t, x, *conditions), x).to(x.dtype)
        return output / expand(self.sde.std(t), x) if self.divide_by_std else output

    def __call__(self, model: Callable[..., Any], x: Any, *conditions: Any) -> Tensor:
        """The loss of a batch, drawn from torch's own generator.

        Raises:
            DataError: the batch or the model's output cannot be used.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
            kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                f"a score-based batch must be x or (x, *conditions) with floating x of shape "
                f"(batch, ...), received {kind}: convert it, or set a loss with set_loss_fn."
            )
        sde = self.sde
        share = torch.rand(len(x), device=x.device, dtype=x.dtype)
        t = sde.smallest_time + share * (sde.end_time - sde.smallest_time)
        mean, std = sde.marginal(t, x)
        noise = torch.randn_like(x)
        noised = mean + std * noise
        output = _require_like(model(t, noised, *conditions), x)
        error = output + noise if self.divide_by_std else std * output + noise
        per_sample = error.square().flatten(1).mean(1)
        if self.likelihood_weighting:
            per_sample = per_sample * (sde.diffusion(t) / sde.std(t)).square()
        return per_sample.mean()


def _require_like(output: Any, x: Tensor) -> Tensor:
    if isinstance(output, Tensor) and output.shape == x.shape:
        return output
    is_tensor = isinstance(output, Tensor)
    received = f"shape {tuple(output.shape)}" if is_tensor else type(output).__name__
    raise DataError(
        f"a score-based model is called as model(t, x, *conditions) and must return a tensor "
        f"shaped as x, {tuple(x.shape)}; it returned {received}."
    )
