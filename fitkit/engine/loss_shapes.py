"""ShapeCheck: refuses targets that an elementwise loss of torch would broadcast."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitkit.core.component_spec import unwrap_partial
from fitkit.core.errors import DataError
from fitkit.engine.loss_weight import ELEMENT_FUNCTIONS, ELEMENT_LOSSES, is_of_torch

# Losses that compare each output with the target at the same place. They broadcast, some of them
# with a warning.
_FORWARDS = {loss.forward for loss in (*ELEMENT_LOSSES, nn.MultiLabelSoftMarginLoss)}
_FUNCTIONS = {*ELEMENT_FUNCTIONS, functional.multilabel_soft_margin_loss}
_WARNING = "Using a target size"  # of torch, for targets that are broadcast


class ShapeCheck:
    """Raises ``DataError`` where an elementwise loss would broadcast outputs or targets.

    ``(n, 1)`` outputs with ``(n,)`` targets would be compared each with each. The first batch is
    checked, and the first with other numbers of dimensions. Other losses may broadcast, also one of
    the user's that calls torch's with other tensors than outputs and targets.

    Args:
        function: the loss.
    """

    def __init__(self, function: Any) -> None:
        function, _ = unwrap_partial(function, {})
        is_module = isinstance(function, nn.Module)
        is_function = isinstance(function, Hashable) and function in _FUNCTIONS
        self._is_elementwise = type(function).forward in _FORWARDS if is_module else is_function
        self._never_broadcasts = not self._is_elementwise and is_of_torch(function)
        self._passed: set[tuple[int, int]] = set()

    def is_due(self, outputs: Any, targets: Any) -> bool:
        """Whether no outputs and targets of as many dimensions were checked yet."""
        if (
            self._never_broadcasts
            or not isinstance(outputs, Tensor)
            or not isinstance(targets, Tensor)
        ):
            return False
        return (outputs.ndim, targets.ndim) not in self._passed

    def call(self, loss: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Any:
        """``loss(outputs, targets)``; a function that calls one of torch's losses is checked too.

        Raises:
            DataError: the loss broadcasts.
        """
        self.require_same(outputs, targets)
        with warnings.catch_warnings():
            if not _has_same_elements(outputs, targets):
                sizes = f"({targets.size()}) that is different to the input size ({outputs.size()})"
                warnings.filterwarnings("error", re.escape(f"{_WARNING} {sizes}"), UserWarning)
            try:
                return loss(outputs, targets)
            except UserWarning as warning:
                if _WARNING not in str(warning):
                    raise
                raise _broadcast_error(outputs, targets) from warning

    def require_same(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ``DataError`` for one of torch's elementwise losses if it would broadcast."""
        if outputs.shape != targets.shape:
            if _has_same_elements(outputs, targets):
                return  # a single sample, for instance; a larger batch is broadcast
            if self._is_elementwise and _common_size(outputs, targets) is not None:
                raise _broadcast_error(outputs, targets)
        self._passed.add((outputs.ndim, targets.ndim))


def _common_size(outputs: Tensor, targets: Tensor) -> int | None:
    """Elements of both after broadcasting; ``None``: they cannot be, which the loss says itself."""
    broadcast_shapes: Any = torch.broadcast_shapes
    try:
        return int(broadcast_shapes(outputs.shape, targets.shape).numel())
    except RuntimeError:
        return None


def _has_same_elements(outputs: Tensor, targets: Tensor) -> bool:
    """Whether nothing has to be repeated to compare them element by element."""
    return _common_size(outputs, targets) == outputs.numel() == targets.numel()


def _broadcast_error(outputs: Tensor, targets: Tensor) -> DataError:
    advice = "give both the same shape in the data or in the model"
    if outputs.shape == (*targets.shape, 1):
        advice = "pass targets[:, None] for targets, or return outputs.squeeze(-1)"
    elif targets.shape == (*outputs.shape, 1):
        advice = "pass targets[:, 0] for targets, or return outputs.unsqueeze(-1)"
    return DataError(
        f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} "
        f"would be broadcast by the loss, which compares outputs with targets of other samples or "
        f"places: {advice}."
    )
