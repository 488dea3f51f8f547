"""LossGate: what DDP wraps, through which the loss of any step goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.average_gradients import sparse_without_rows

_ROUNDING = 2.0**-22  # relative; four times that of float32


class LossGate(nn.Module):
    """Passes a loss on; the parameters are those that its backward pass reaches.

    Attributes:
        counts: what DDP averages besides; ``None``: gradients are too inexact for it, or on a
            device that would have to be waited for.
    """

    def __init__(self, modules: TrainedModules, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.loss = modules.model, modules.loss
        known = set(map(id, modules.parameters()))
        for name, parameter in named.items():
            if id(parameter) not in known:
                # as it is: register_parameter takes no plain tensor, which optimizers do
                self._parameters[name] = parameter  # type: ignore[assignment]
        exact = {p.dtype for p in named.values() if p.requires_grad and p.device.type == "cpu"}
        dtype = next((it for it in (torch.float64, torch.float32) if it in exact), None)
        self.counts = None if dtype is None else Counts(dtype)
        if self.counts is not None:
            self.register_parameter("num_samples_and_weight", self.counts.parameter)

    def forward(self, loss: Tensor) -> tuple[Tensor, ...]:
        """The loss, and a view of the parameter of ``counts``, which gets them as its gradient."""
        if self.counts is None:
            return (loss,)
        parameter = self.counts.parameter
        parameter.grad = None
        return loss, parameter.view_as(parameter)

    @staticmethod
    def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
        """DDP's options, with the names of parameters as they are below this module."""
        name = "delay_all_reduce_named_params"
        given = options.get(name)
        delayed = None if given is None else [(f"model.{path}", p) for path, p in given]
        return {**options, **({} if delayed is None else {name: delayed})}

    def without_values(self, parameters: Iterable[Tensor]) -> list[Tensor | None]:
        """Gradients that add nothing: ``None``, or of no rows where DDP expects sparse ones."""
        kinds = (nn.Embedding, nn.EmbeddingBag)
        sparse = {id(m.weight) for m in self.modules() if isinstance(m, kinds) and m.sparse}
        return [sparse_without_rows(p) if id(p) in sparse else None for p in parameters]


class Counts:
    """The number of samples and their weight, averaged by DDP together with gradients.

    A message of their own would take a quarter of a small step.

    Attributes:
        values: those of this rank; 0 if they are summed otherwise.
        parameter: gets the values as its gradient.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.values = torch.zeros(2, dtype=dtype)
        self.parameter = nn.Parameter(torch.zeros(2, dtype=dtype))

    def set(self, samples: float, weight: float) -> None:
        """Set the values; the last backward pass may have used their memory for its gradient."""
        self.values.numpy()[:] = samples, weight  # a new tensor takes several times as long

    def sums(self, size: int) -> list[float]:
        """The sums of the values over the ranks, of which DDP has taken the mean."""
        means: list[float] = self.parameter.grad.tolist()  # type: ignore[union-attr]
        sums = [mean * size for mean in means]
        # the mean may be inexact in the last digit: whole numbers stay whole
        return [round(it) if math.isclose(it, round(it), rel_tol=_ROUNDING) else it for it in sums]


class _WithGradients(torch.autograd.Function):
    """A loss whose backward pass runs the hooks of parameters with gradients of their own.

    DDP counts ``None`` as zeros, and not as a use of the parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        gradients: Sequence[Tensor | None],
        *parameters: Tensor,  # noqa: ARG004  autograd has to know them
    ) -> Tensor:
        """The loss."""
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradients of the loss and of the parameters."""
        return (gradient, None, *ctx.gradients)


def with_gradients(
    loss: Tensor, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Tensor:
    """``loss``, whose backward pass gives ``parameters`` these gradients."""
    result: Tensor = _WithGradients.apply(loss, gradients, *parameters)  # type: ignore[no-untyped-call]
    return result
