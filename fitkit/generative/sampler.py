"""Sampler: the protocol of samplers for ``NNHandler.set_sampler``."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class Sampler(Protocol):
    """Draws samples, and has state for checkpoints.

    Any class with these methods is a sampler. It may draw from the global generators of torch,
    NumPy and Python: the handler seeds them for each call, and restores them.
    """

    def sample(self, n: int, device: torch.device, **kwargs: Any) -> Any:
        """``n`` samples on ``device``: a tensor ``(n, ...)``, or a nesting of such tensors."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state, as tensors and plain types."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        ...
