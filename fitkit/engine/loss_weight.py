"""LossWeight: what the mean of a loss is over, in windows, over ranks and over an epoch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitkit.core.argument_checks import as_whole_number
from fitkit.core.component_spec import LossSpec, unwrap_partial
from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import ConfigurationError, DataError, describe
from fitkit.core.state_placement import is_on_host

_FEW = 64  # values that a list counts faster than an array
# torch's losses whose mean is over the targets that are not ignored, or over their class weights
_CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_CLASS_FUNCTIONS = (functional.cross_entropy, functional.nll_loss)

# those whose mean is over all elements
ELEMENT_LOSSES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
)
ELEMENT_FUNCTIONS = (
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.kl_div,
    functional.poisson_nll_loss,
    functional.soft_margin_loss,
    functional.hinge_embedding_loss,
)


@dataclass(frozen=True)
class LossWeight:
    """What the mean of a batch's loss is over.

    Attributes:
        function: ``(outputs, targets)`` -> a number, or a tensor of one element; ``None``: the
            number of samples.
        needs_outputs: whether it reads the outputs; else targets on the host give a number without
            waiting for the device.
    """

    function: Callable[[Any, Any], Any]
    needs_outputs: bool = False


def loss_weight(spec: LossSpec) -> LossWeight | None:
    """What a loss averages over: as the user's function says, or as torch's losses do.

    Returns:
        ``None`` for the number of samples.

    Raises:
        ConfigurationError: the loss is a sum, or the user's weight is no function.
    """
    loss, kwargs = unwrap_partial(spec.function, spec.kwargs)
    own = None if spec.weight is None else _user_weight(spec.weight)
    options = _options(loss, kwargs)
    reduction = options.get("reduction", "mean")
    if reduction == "sum":
        raise ConfigurationError(
            f"the loss must be a mean, but {_name(loss)} has reduction='sum', whose gradient grows "
            f"with the batch: use reduction='mean', or divide the sum by what it is over in a "
            f"function of your own, and pass that as weight= if it is not the number of samples."
        )
    if own is not None or reduction != "mean":  # KLDivLoss has a mean over samples too
        return own
    if _is_one_of(loss, _CLASS_LOSSES, _CLASS_FUNCTIONS):
        ignore_index = options.get("ignore_index", -100)
        return LossWeight(_ClassWeights(ignore_index, options.get("weight")))
    if _is_one_of(loss, ELEMENT_LOSSES, ELEMENT_FUNCTIONS):
        return LossWeight(_num_elements)
    return None


def _is_one_of(loss: Any, losses: tuple[type[nn.Module], ...], functions: tuple[Any, ...]) -> bool:
    """Whether a loss is one of these functions, or a module whose ``forward`` is one of theirs."""
    if isinstance(loss, nn.Module):
        return any(type(loss).forward is one.forward for one in losses)
    return inspect.isfunction(loss) and loss in functions


def _options(loss: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a loss of torch; empty for another."""
    if not is_of_torch(loss):
        return {}
    is_module = isinstance(loss, nn.Module)
    return {**vars(loss), "weight": getattr(loss, "weight", None)} if is_module else kwargs


def is_of_torch(loss: Any) -> bool:
    """Whether a loss is a function of torch, or a module whose ``forward`` is that of torch's."""
    function = type(loss).forward if isinstance(loss, nn.Module) else loss
    if not inspect.isfunction(function):
        return False
    return function.__module__ in (nn.modules.loss.__name__, functional.__name__)


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def _num_elements(_: Any, targets: Any) -> int | None:
    return targets.numel() if isinstance(targets, Tensor) else None


class _ClassWeights:
    """The number of targets that are not ignored, or the sum of the weights of their classes."""

    def __init__(self, ignore_index: int, weights: Tensor | None) -> None:
        self._ignore_index = ignore_index
        self._weights = weights
        self._copies: dict[tuple[torch.device, int], Tensor] = {}

    def __call__(self, outputs: Any, targets: Any) -> float | Tensor | None:
        if not isinstance(targets, Tensor):
            return None
        if targets.is_floating_point():  # probabilities of shape (batch, classes, ...)
            return targets.numel() // targets.shape[min(targets.ndim, 2) - 1]
        if self._weights is None:
            if is_on_host(targets):
                return _count_others(targets, self._ignore_index)
            return _unread(torch.count_nonzero(targets != self._ignore_index))
        is_ignored = targets == self._ignore_index
        weights = self._weights_on(targets.device)[targets.long().masked_fill(is_ignored, 0)]
        return _unread(weights.masked_fill(is_ignored, 0).sum())

    def _weights_on(self, device: torch.device) -> Tensor:
        """A copy, which is made again when the program has changed them."""
        weights: Any = self._weights
        key = (device, weights._version)  # noqa: SLF001 - it has no public form
        if key not in self._copies:
            self._copies = {key: weights.detach().to(device).to(accumulation_dtype(device))}
        return self._copies[key]


def _count_others(values: Tensor, value: int) -> int:
    """How many of ``values``, on the host, are not ``value``, in the quickest way for a number."""
    number = values.numel()
    if number <= _FEW and values.ndim == 1:
        return number - values.tolist().count(value)
    return number - int(np.count_nonzero(values.numpy() == value))


def _unread(weight: Tensor) -> float | Tensor:
    """A weight on the host as a number; targets on a device are counted without waiting for it."""
    if is_on_host(weight):
        return float(weight)
    return weight.to(accumulation_dtype(weight.device))


def _user_weight(weight: Any) -> LossWeight:
    try:
        inspect.signature(weight).bind(None, None)
    except TypeError as error:  # it is not callable, or takes other arguments
        raise ConfigurationError(
            f"weight must be a function (outputs, targets) -> what the mean of the loss is over, "
            f"for example the number of tokens; received {describe(weight)}."
        ) from error
    except ValueError:  # some functions written in C have no signature
        pass
    return LossWeight(weight, needs_outputs=True)


def as_weight(value: Any) -> int | float:
    """A weight as a number; one on a device is read, as a batch of weight 0 must have no effect.

    Raises:
        DataError: it is not one number of at least 0.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, Real) and 0 <= float(value) < math.inf:
        return int(value) if isinstance(value, Integral) else float(value)
    raise DataError(
        f"the weight of a loss must be what its mean is over, one number of at least 0, received "
        f"{value if isinstance(value, (int, float)) else describe(value)}."
    )


def as_count(value: Any) -> int | None:
    """The number of samples that a step returned, or ``DataError`` if it is no whole number."""
    if value is None:
        return None
    count = as_whole_number(value)
    if count is None:
        raise DataError(
            f"StepOutput(num_samples=...) must be the number of samples in the batch, a whole "
            f"number of at least 0, received {value!r}."
        )
    return count
