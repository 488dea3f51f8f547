"""Run: everything that one call of fit, evaluate or predict works with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from fitkit.core.callback_list import CallbackList
from fitkit.core.fetch_clock import FetchClock
from fitkit.core.state import FitState
from fitkit.core.types import BatchSource

if TYPE_CHECKING:
    from fitkit.engine.forward import Forward
    from fitkit.engine.schedule import Schedule
    from fitkit.engine.steps import TrainStep
    from fitkit.metrics.meters import Meters


class Agreement(Protocol):
    """What has to happen at the same batch on all processes."""

    @property
    def must_stop(self) -> bool:
        """Whether training is to end after this batch."""

    def share(self, contributed: dict[str, Any]) -> None:
        """Let all processes have the values that callbacks of the main one contributed."""

    def check(self, *, now: bool = False) -> None:
        """A batch is done; ``now``: an epoch is. Raises what a signal asked for."""


@dataclass
class Phase:
    """One pass over data: where its batches come from and where its values are added up.

    Attributes:
        source: the batches.
        meters: the sums of this pass.
        limit: batches to take at most, or ``None`` for all.
        clock: measures the waiting for batches, or ``None`` if nobody wants to know.
    """

    source: BatchSource
    meters: Meters
    limit: int | None = None
    clock: FetchClock | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches that the pass will have, as far as known."""
        known = self.source.num_batches
        if known is None or self.limit is None:
            return self.limit if known is None else known
        return min(known, self.limit)


@dataclass
class EvaluationRun:
    """What an evaluation needs.

    Attributes:
        forward: from a batch to its loss.
        module: the model without wrappers, for its modes.
        averaged: a context in which the model has its averaged weights, if there are any.
        without_gradients: a context in which the model is called for its outputs alone.
        callbacks: who hears of it.
        state: counters of batches.
        reduce: sums a float64 vector over the processes.
        agreement: what has to happen at the same batch on all processes.
        prepare: brings the model of all processes to the same state before an evaluation.
        before_batch: called before each batch, where anything has to be.
    """

    forward: Forward
    module: nn.Module
    averaged: Callable[[], AbstractContextManager[None]]
    without_gradients: Callable[[], AbstractContextManager[Any]]
    callbacks: CallbackList
    state: FitState
    reduce: Callable[[Tensor], Tensor]
    agreement: Agreement
    prepare: Callable[[], None]
    before_batch: Callable[[], None] | None


@dataclass
class FitRun(EvaluationRun):
    """What training needs besides.

    Attributes:
        step: trains on one batch.
        schedule: the learning-rate schedule.
        train: the pass over the training data.
        validation: the pass over the validation data, or ``None``.
        validate_every: epochs between validations.
        last_epoch: value of ``state.epoch`` at which this call is complete.
        last_step: value of ``state.global_step`` at which this call is complete, or ``None``.
        learning_rate: the learning rate in use.
        recover: after a resume, finishes what was under way when the checkpoint was made.
        finish: brings to an end what is still under way behind training.
        blame: the error to tell for an error here, which may have come from another process.
        others: what the other processes have added up inside the epoch, while it is saved.
    """

    step: TrainStep
    schedule: Schedule
    train: Phase
    validation: Phase | None
    validate_every: int
    last_epoch: int
    last_step: int | None
    learning_rate: Callable[[], float | None]
    recover: Callable[[], None]
    finish: Callable[[], None]
    blame: Callable[[BaseException], BaseException]
    others: list[dict[str, Any]] = field(default_factory=list)

    def progress(self) -> dict[str, Any]:
        """Where the run stands, with what has been added up inside the epoch."""
        return {
            "state": self.state.state_dict(),
            "unheard": self.callbacks.unheard(),
            **self.of_this_process(),
            "others": self.others,
        }

    def of_this_process(self) -> dict[str, Any]:
        """What this process has added up inside the epoch."""
        passes = {"train": self.train, "validation": self.validation}
        return {
            "window": self.step.state_dict(),
            "meters": {name: p.meters.state_dict() for name, p in passes.items() if p is not None},
        }

    def positions(self) -> dict[str, Any]:
        """Where the loaders stand, beyond epoch and batch."""
        passes = {"train": self.train, "validation": self.validation}
        return {name: p.source.state_dict() for name, p in passes.items() if p is not None}

    def restore(self, progress: dict[str, Any], positions: dict[str, Any]) -> None:
        """Stand where ``progress`` and ``positions`` were taken; counters excepted."""
        self.step.load_state_dict(progress.get("window", {}))
        for name, one in (("train", self.train), ("validation", self.validation)):
            if one is not None and name in progress.get("meters", {}):
                one.meters.load_state_dict(progress["meters"][name])
            if one is not None and name in positions:
                one.source.load_state_dict(positions[name])
