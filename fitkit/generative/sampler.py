"""Sampler: what ``NNHandler.set_sampler`` takes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class Sampler(Protocol):
    """Draws samples, and can be put into a checkpoint.

    Any class with these methods is one. It draws from the global generators of torch, NumPy and
    Python, which the handler seeds around each call.
    """

    def sample(self, n: int, device: torch.device, **kwargs: Any) -> Any:
        """``n`` samples on ``device``: a tensor ``(n, ...)``, or a nesting of such tensors."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Progress as tensors and plain types."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned earlier."""
        ...
