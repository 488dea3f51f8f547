"""Precision: forward, backward and optimizer step in fp32, bf16 and fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError, FitkitError, did_you_mean, listed
from fitkit.runtime.backward import run_backward
from fitkit.runtime.optimizer_step import take_step

_NO_AUTOCAST = nullcontext()


class Precision:
    """Single precision, and the interface of the other precisions.

    Attributes:
        name: the value of ``precision=``.
        reads_to_step: whether ``step`` synchronizes with the device.
    """

    name = "fp32"
    reads_to_step = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def forward(self) -> AbstractContextManager[Any]:
        """The context for the model and the loss."""
        return _NO_AUTOCAST

    def backward(self, loss: Tensor, *others: tuple[Tensor, Tensor]) -> None:
        """Accumulate the gradients of ``loss``, and those of ``others``, which are given."""
        run_backward(loss, *others)

    def unscale(self, optimizer: Optimizer) -> None:
        """Undo the scaling of the gradients."""

    def step(self, optimizer: Optimizer) -> bool:
        """Step the optimizer; ``False`` if the step was skipped because gradients overflowed."""
        take_step(optimizer)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss scaler; empty without one."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the loss scaler."""


class BFloat16(Precision):
    """Autocast to bfloat16, which needs no loss scaling."""

    name = "bf16"
    dtype = torch.bfloat16

    def forward(self) -> AbstractContextManager[Any]:
        """Autocast to ``dtype``."""
        return torch.autocast(self.device.type, dtype=self.dtype)


class Float16(BFloat16):
    """Autocast to float16 with a loss scaler."""

    name = "fp16"
    reads_to_step = True
    dtype = torch.float16

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.scaler = torch.amp.GradScaler(device.type)
        self._has_scaled = False

    def backward(self, loss: Tensor, *others: tuple[Tensor, Tensor]) -> None:
        """Accumulate the gradients of the scaled loss, and those of ``others``."""
        run_backward(self._scale(loss), *others)

    def _scale(self, loss: Tensor) -> Tensor:
        self._has_scaled = True
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, and detect overflow."""
        if not self._has_scaled:
            # a resumed window may end without a backward pass, in the first of which torch makes it
            self._scale(torch.zeros((), device=self.device))
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Step unless a gradient overflowed, then update the scale, which must not fall to 0."""
        scale_before = self.scaler.get_scale()
        if scale_before == 0.0:  # torch would divide by 0 and step with NaN gradients
            raise FitkitError(
                "the loss scale of fp16 fell to 0 because every step overflowed: look for a loss "
                "that is not finite, lower the learning rate, or use precision='bf16' or 'fp32'."
            )
        self.scaler.step(optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= scale_before)

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss scaler."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the loss scaler; ignore that of a run without one."""
        if state_dict:
            self.scaler.load_state_dict(state_dict)


_BY_NAME = {kind.name: kind for kind in (Precision, BFloat16, Float16)}


def make_precision(name: str | None, device: torch.device) -> Precision:
    """The precision ``"fp32"`` (also ``None``), ``"bf16"`` or ``"fp16"``."""
    if name is None:
        return Precision(device)
    if isinstance(name, str) and name in _BY_NAME:
        return _BY_NAME[name](device)
    suggestion = did_you_mean(name, _BY_NAME) if isinstance(name, str) else ""
    raise ConfigurationError(
        f"precision must be one of {listed(_BY_NAME)} or None, received {name!r}.{suggestion}"
    )
