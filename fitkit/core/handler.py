"""Handler: the protocol of the handler that callbacks see."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.core.state import FitState


class EpochHistory(Protocol):
    """The logs of all epochs of a run, also of those before a restart."""

    @property
    def epoch(self) -> list[int]:
        """Epoch numbers, from 0."""

    @property
    def history(self) -> dict[str, list[float]]:
        """Values by name, one per epoch; NaN where a value is missing."""


class Ranks(Protocol):
    """The position of this process among the ranks of a run."""

    rank: int
    size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""


class Handler(Protocol):
    """The type of ``Callback.handler``.

    Attributes:
        stop_training: set it to end training after the current batch.
        gradient_accumulation_steps: batches per optimizer step; a new value applies from the next
            accumulation window on.
    """

    stop_training: bool
    gradient_accumulation_steps: int

    @property
    def model(self) -> nn.Module:
        """The model with its wrappers."""

    @property
    def module(self) -> nn.Module:
        """The model without wrappers."""

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, once set."""

    @property
    def scheduler(self) -> LRScheduler | None:
        """The scheduler, once set."""

    @property
    def callbacks(self) -> Any:
        """The ``CallbackList`` of the run."""

    @property
    def history(self) -> EpochHistory:
        """The logs of all epochs."""

    @property
    def state(self) -> FitState:
        """Counters of the run; ``state.stop(reason)`` ends it."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    @property
    def logger(self) -> logging.Logger:
        """The handler's logger."""

    @property
    def world(self) -> Ranks:
        """This process among the ranks of the run."""

    @property
    def seed(self) -> int | None:
        """The seed of the run."""

    def log(self, name: str, value: Any) -> None:
        """Add a value to the logs of this epoch."""

    def running_logs(self) -> dict[str, float]:
        """The means over the training batches of this epoch so far."""

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The loss and metrics over ``data``."""

    def predict(self, *args: Any, **options: Any) -> Any:
        """The model's outputs on ``data``."""

    def save(self, path: str | Path) -> None:
        """Write a checkpoint to ``path`` now."""

    def get_state_dict(self) -> dict[str, Any]:
        """The state that ``save`` writes."""
