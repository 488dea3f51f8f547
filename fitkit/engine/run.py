"""What one call of ``fit``, ``evaluate`` or ``predict`` works with."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from torch import Tensor

from fitkit.core.callback_list import CallbackList
from fitkit.core.data_timer import DataTimer
from fitkit.core.errors import Preempted
from fitkit.core.state import FitState, Phase
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import BatchSource, Share
from fitkit.core.validation_sets import pass_name
from fitkit.engine.batch_logs import BatchLogs
from fitkit.engine.data_position import load_position
from fitkit.engine.forward import Forward
from fitkit.engine.lr_schedule import Schedule
from fitkit.engine.train_step import TrainStep
from fitkit.metrics.meters import Meters
from fitkit.metrics.ranks import Ranks
from fitkit.runtime.signals import SignalWatch


class RankSync:
    """Checks for stops and signals after every batch, with one rank.

    Args:
        state: where a stop may have been requested.
        watch: signals that were received.

    Attributes:
        agreed_end: the exception by which all ranks end the run after the same batch.
    """

    def __init__(self, state: FitState, watch: SignalWatch) -> None:
        self._state = state
        self._watch = watch
        self.agreed_end: BaseException | None = None

    @property
    def must_stop(self) -> bool:
        """Whether training is to end after this batch."""
        return self._state.stopping

    def restart(self) -> None:
        """Read anew whether a stop was requested, after a resume has changed that on all ranks."""

    def guard(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; after a signal, an error in loading one is the end that was announced.

        The signal may have ended what loads the data, and the run is at the end of a batch.

        Raises:
            BaseException: as ``check`` after a signal, else what the data raised.
        """
        try:
            yield from batches
        except Exception:
            self.check(now=True)
            raise

    def share_logs(self) -> None:
        """Give all ranks the values that callbacks of rank 0 have logged."""

    def check(self, *, now: bool = False) -> None:
        """Called after each batch, and with ``now`` after each epoch.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after a signal that announces the end of the process.
        """
        if self._watch.received is not None:
            self._end_for(self._watch.received)

    def _end_for(self, received: signal.Signals) -> None:
        self._watch.is_answered = True
        is_interrupt = received is signal.SIGINT
        self.agreed_end = KeyboardInterrupt() if is_interrupt else Preempted(received)
        raise self.agreed_end


class EvaluationContext(Protocol):
    """How the model is evaluated: with which weights, and together with which other ranks."""

    def ema_weights(self) -> AbstractContextManager[None]:
        """Inside ``with`` the model has its averaged weights, if there are any."""

    def sync_buffers(self) -> None:
        """Copy the buffers of model and loss from rank 0 to the other ranks."""

    @property
    def ranks(self) -> Ranks:
        """The ranks whose sums are added."""

    def seed_rank(self) -> None:
        """Give a rank other than 0 random streams of its own from this step on."""


class FitLifecycle(Protocol):
    """What surrounds the loop: a resumed event, saves, and errors of other ranks."""

    def learning_rate(self) -> float | None:
        """The learning rate in use."""

    def replay_interrupted_event(self) -> None:
        """After a resume, finish the event in which the checkpoint was made."""

    def finish_saves(self) -> None:
        """Wait for the saves that are still in flight."""

    def first_error(self, error: BaseException) -> BaseException:
        """The error to raise for one raised here, which another rank may have caused."""


@dataclass
class DataPass:
    """One pass over data.

    Attributes:
        source: gives the batches.
        meters: sums of loss and metrics over the pass.
        count: counts the samples of a batch; gets the share that its source knows.
        limit: batches to take at most; ``None``: all.
        timer: measures the time spent waiting for batches; ``None``: nobody asked for it.
    """

    source: BatchSource
    meters: Meters
    count: Callable[[Any, Share | None], Share]
    limit: int | None = None
    timer: DataTimer | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches that the pass will have, as far as known."""
        known = self.source.num_batches
        if known is None or self.limit is None:
            return self.limit if known is None else known
        return min(known, self.limit)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The batches from ``start`` up to the limit; no batch is fetched beyond it."""
        stop = None if self.limit is None else max(self.limit - start, 0)
        batches = islice(self.source.iterate(epoch, start), stop)
        return batches if self.timer is None else self.timer.timed(batches)

    def share_in(self, batch: Any, given: int | None = None) -> Share:
        """The samples in the batch that the source has just given; ``given``: as a step said."""
        share = self.source.share
        if given is None:
            return self.count(batch, share)
        return Share(given if share is None or share.local != 0 else 0, None)


@dataclass
class EvaluationRun:
    """What an evaluation needs.

    Attributes:
        forward: computes the loss of a batch.
        modules: the model and the loss, for their modes.
        context: which weights are evaluated, and together with which ranks.
        callbacks: hear the events.
        state: counts the batches.
        rank_sync: what all ranks have to do at the same batch.
        batch_logs: makes the logs of a batch.
        grad: whether autograd records operations in evaluation, for a model, a loss or a step
            that computes gradients itself.
        laid_aside: during an evaluation, the gradients from before it, by parameter.
    """

    forward: Forward
    modules: TrainedModules
    context: EvaluationContext
    callbacks: CallbackList
    state: FitState
    rank_sync: RankSync
    batch_logs: BatchLogs = field(default_factory=BatchLogs, kw_only=True)
    grad: bool = field(default=False, kw_only=True)
    laid_aside: Mapping[Tensor, Tensor | None] = field(default_factory=dict, kw_only=True)


@dataclass
class FitRun(EvaluationRun):
    """What training needs besides.

    Attributes:
        step: trains on one batch.
        schedule: the learning-rate schedule.
        train: the pass over the training data.
        validation: the passes over the validation sets, by name; none without validation.
        validate_every: epochs between validations.
        last_epoch: value of ``state.epoch`` at which this call is complete.
        last_step: value of ``state.global_step`` at which this call is complete, or ``None``.
        lifecycle: what surrounds the loop.
        other_ranks: ``rank_progress()`` of the others, ``None`` on those, while a file is made.
    """

    step: TrainStep
    schedule: Schedule
    train: DataPass
    validation: dict[str, DataPass]
    validate_every: int
    last_epoch: int
    last_step: int | None
    lifecycle: FitLifecycle
    other_ranks: list[dict[str, Any]] | None = field(default_factory=list)

    def progress(self) -> dict[str, Any]:
        """Position in the run, and what was accumulated inside the epoch."""
        return {
            "state": self.state.state_dict(),
            "unheard": self.callbacks.pending_event(),
            **self.rank_progress(),
            "others": self.other_ranks,
        }

    def rank_progress(self) -> dict[str, Any]:
        """What this rank has accumulated inside the epoch."""
        meters = {name: p.meters.state_dict() for name, p in self._unfinished_passes().items()}
        return {"window": self.step.state_dict(self.laid_aside), "meters": meters}

    def positions(self) -> dict[str, Any]:
        """Positions of the data sources, beyond epoch and batch."""
        return {name: p.source.state_dict() for name, p in self.passes().items()}

    def restore(self, progress: dict[str, Any], positions: dict[str, Any]) -> None:
        """Load what ``progress`` and ``positions`` returned, except ``state``."""
        self.step.load_state_dict(progress.get("window", {}))
        for name, data_pass in self._unfinished_passes().items():
            if name in progress.get("meters", {}):
                data_pass.meters.load_state_dict(progress["meters"][name])
        for name, data_pass in self.passes().items():
            if name in positions:
                is_inside = self.state.batch > 0 and name == self._open_pass()
                load_position(data_pass.source, positions[name], is_inside=is_inside)

    def _unfinished_passes(self) -> dict[str, DataPass]:
        """The passes whose sums are progress; a new epoch or validation begins new sums."""
        begun = {Phase.TRAIN: ["train"], Phase.VALIDATE: ["train"]}
        begun[Phase.TEST] = ["train", pass_name(self.state.evaluation_set)]
        names = begun.get(self.state.phase, ())
        return {name: p for name, p in self.passes().items() if name in names}

    def _open_pass(self) -> str | None:
        """The name of the pass that ``state.batch`` counts."""
        of_set = pass_name(self.state.evaluation_set)
        return {Phase.TRAIN: "train", Phase.TEST: of_set}.get(self.state.phase)

    def passes(self) -> dict[str, DataPass]:
        """The passes over data by the names that a checkpoint has for them."""
        sets = {pass_name(name): data_pass for name, data_pass in self.validation.items()}
        return {"train": self.train, **sets}
