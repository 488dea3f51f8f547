"""Precision: what forward, backward and the optimizer step do in each number format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError, FitkitError, did_you_mean, listed

_NOTHING = nullcontext()


class Precision:
    """Single precision: every method does the plain thing.

    Attributes:
        name: what users call it.
        reads_to_step: whether ``step`` waits for the device.
    """

    name = "fp32"
    reads_to_step = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def forward(self) -> AbstractContextManager[Any]:
        """The context in which the model and the loss run."""
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Make the gradients those of the loss itself."""

    def step(self, optimizer: Optimizer) -> bool:
        """Step the optimizer; ``False`` if the step was skipped for overflowing gradients."""
        optimizer.step()
        return True

    def state_dict(self) -> dict[str, Any]:
        """The loss scaler's state; empty where there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a loss scaler's state."""


class BFloat16(Precision):
    """Autocast to bfloat16, whose range needs no loss scaling."""

    name = "bf16"
    dtype = torch.bfloat16

    def forward(self) -> AbstractContextManager[Any]:
        """Autocast to ``dtype``."""
        return torch.autocast(self.device.type, dtype=self.dtype)


class Float16(BFloat16):
    """Autocast to float16 with a loss scaler, as its small range needs one."""

    name = "fp16"
    reads_to_step = True
    dtype = torch.float16

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.scaler = torch.amp.GradScaler(device.type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, and note whether one overflowed."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Step unless a gradient overflowed, then adapt the scale.

        Raises:
            FitkitError: no scale is left that would not overflow.
        """
        scale_before = self.scaler.get_scale()
        if scale_before == 0.0:  # torch would divide by it and step with gradients of NaN
            raise FitkitError(
                "the loss scale of fp16 fell to 0 because every step overflowed: look for a loss "
                "that is not finite, lower the learning rate, or use precision='bf16' or 'fp32'."
            )
        self.scaler.step(optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= scale_before)

    def state_dict(self) -> dict[str, Any]:
        """The loss scaler's state."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a loss scaler's state; an empty one, of a run without scaler, is left out."""
        if state_dict:
            self.scaler.load_state_dict(state_dict)


_BY_NAME: tuple[type[Precision], ...] = (Precision, BFloat16, Float16)


def make_precision(name: str | None, device: torch.device) -> Precision:
    """The precision called ``"fp32"`` (or ``None``), ``"bf16"`` or ``"fp16"``.

    Raises:
        ConfigurationError: the name is unknown.
    """
    for kind in _BY_NAME:
        if name == kind.name or (name is None and kind is Precision):
            return kind(device)
    names = [kind.name for kind in _BY_NAME]
    suggestion = did_you_mean(name, names) if isinstance(name, str) else ""
    raise ConfigurationError(
        f"precision must be one of {listed(names)} or None, received {name!r}.{suggestion}"
    )
