"""FitState: the counters of a run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

from fitkit.core.errors import CheckpointError, ConfigurationError, listed
from fitkit.core.logs import Logs, as_loggable
from fitkit.core.validation_sets import UNNAMED

if TYPE_CHECKING:
    from torch import Tensor


class Phase(str, Enum):
    """What the loop does next within ``FitState.epoch``."""

    BEGIN = "begin"  # the epoch has not begun
    TRAIN = "train"  # training on its batches
    VALIDATE = "validate"  # training has ended; validation, if due, has not begun
    TEST = "test"  # inside validation
    END = "end"  # all batches are done; schedules and on_epoch_end hooks follow


class FitState:
    """The counters of a run. Only the loop changes them; anyone may read them and call ``stop``.

    Args:
        model: where code written for Keras sets ``stop_training``.

    Counters cover the whole life of the handler, across calls of ``fit`` and across restarts.
    They advance *before* the end-of-batch and end-of-epoch hooks run, so a checkpoint saved in
    those hooks continues with the next batch or epoch.

    Attributes:
        epoch: completed epochs, which is also the index (from 0) of the current epoch.
        batch: batches completed in the current phase (training or validation) of this epoch.
        global_step: training batches completed over all epochs.
        optimizer_steps: optimizer steps taken; steps that a loss scaler skipped do not count.
        samples_seen: training samples processed over all epochs.
        phase: what the loop does next in this epoch.
        call: number of the current call of ``fit``, from 1.
        first_epoch: value of ``epoch`` when the current call of ``fit`` began.
        first_step: value of ``global_step`` when the current call of ``fit`` began.
        stop_reason: why the current call stops or stopped early, or ``None``.
        stop_is_final: whether the reason also holds for a resume; limits of one call, such as
            ``max_steps``, do not.
        stopped_non_finite: whether the reason is a loss or metric that is not finite.
        mid_step: whether a training step is in progress; a checkpoint saved then does not resume
            exactly.
        last_lr: the learning rate of the epoch's last optimizer step so far, a number or a tensor,
            or ``None``.
        evaluation_set: the name of the validation set that is evaluated; empty for a set without a
            name, and outside of evaluation.
        validated: the names of the validation sets that this epoch is done with.
    """

    # fmt: off
    _SAVED = (
        "epoch", "batch", "global_step", "optimizer_steps", "samples_seen", "call", "first_epoch",
        "first_step", "stop_reason", "stop_is_final", "stopped_non_finite", "mid_step",
        "evaluation_set", "validated",
    )
    _ADDED = ("evaluation_set", "validated")  # files of earlier versions lack them
    # fmt: on

    def __init__(self, model: object | None = None) -> None:
        self._model = model
        self.epoch = 0
        self.batch = 0
        self.global_step = 0
        self.optimizer_steps = 0
        self.samples_seen = 0
        self.phase = Phase.BEGIN
        self.call = 0
        self.first_epoch = 0
        self.first_step = 0
        self.stop_reason: str | None = None
        self.stop_is_final = True
        self.stopped_non_finite = False
        self.mid_step = False
        self.last_lr: float | Tensor | None = None
        self.evaluation_set = UNNAMED
        self.validated: list[str] = []
        self.epoch_logs: dict[str, float] = {}
        self.logged: dict[str, Any] = {}
        # Of several ranks: what this one has logged since the ranks last shared their values, so
        # that nobody reads a value that another rank has otherwise. ``None``: there is one rank.
        self.unshared: dict[str, Any] | None = None

    @property
    def stopping(self) -> bool:
        """Whether this call of ``fit`` was asked to stop."""
        # a module looks long for an attribute that it lacks, and this is asked for each batch
        if self._model is not None and vars(self._model).get("stop_training"):
            self.stop("model.stop_training was set")
        return self.stop_reason is not None

    def stop(self, reason: str, *, non_finite: bool = False, final: bool = True) -> None:
        """Stop training after the current batch; ``on_epoch_end`` and ``on_train_end`` still run.

        Args:
            reason: one sentence for the user; the first reason is kept.
            non_finite: the reason is a loss or metric that is not finite; savers then write neither
                a best nor a last checkpoint.
            final: a resumed run does not train further; ``False`` for limits that a later script
                may change.
        """
        if self.stop_reason is None:
            self.stop_reason = reason
            self.stop_is_final = final
        self.stopped_non_finite = self.stopped_non_finite or non_finite

    def log(self, name: str, value: Any, reserved: Iterable[str] = ()) -> None:
        """Add a value to the logs of the epoch.

        Args:
            name: its name in the logs. With several ranks the logs hold the value of rank 0, from
                the next time on that the ranks share theirs.
            value: a number, or a scalar tensor, which stays on its device until it is read.
            reserved: names of the loss and the metrics, in training and in validation.

        Raises:
            ConfigurationError: the name is not a string or is in use, or the value is not one
                number.
        """
        used = {"lr", "epoch", *reserved, *self.epoch_logs}
        if not isinstance(name, str) or not name or name in used:
            raise ConfigurationError(
                f"a callback cannot log {name!r}: choose a non-empty name that is not logged "
                f"already."
            )
        logged = self.logged if self.unshared is None else self.unshared
        logged[name] = as_loggable(name, value)

    def live_logs(self) -> Logs:
        """A live view of the epoch's values and of what callbacks logged, the same on all ranks."""
        return Logs(ChainMap(self.logged, self.epoch_logs))

    def clear_logs(self) -> None:
        """Forget the values of the epoch before."""
        self.epoch_logs, self.logged, self.last_lr = {}, {}, None
        if self.unshared:
            self.unshared = {}

    def counters(self) -> dict[str, int]:
        """What was done so far, over all calls of ``fit``."""
        names = ("epoch", "global_step", "optimizer_steps", "samples_seen")
        return {name: getattr(self, name) for name in names}

    def begin_call(self) -> None:
        """Begin a call of ``fit`` that does not resume an interrupted one."""
        self.call += 1
        self.first_epoch = self.epoch
        self.first_step = self.global_step
        self.clear_stop()

    def clear_stop(self) -> None:
        """Discard an earlier ``stop``."""
        if self._model is not None and "stop_training" in vars(self._model):
            vars(self._model)["stop_training"] = False
        self.stop_reason = None
        self.stop_is_final = True
        self.stopped_non_finite = False

    def enter(self, phase: Phase) -> None:
        """Begin a phase of the epoch at its first batch."""
        self.phase = phase
        self.batch = 0
        if phase is Phase.BEGIN:
            self.evaluation_set, self.validated = UNNAMED, []

    def finish_set(self, *, is_last: bool) -> None:
        """Count the validation set that is evaluated; the next one, or the end, has not begun."""
        self.validated = [*self.validated, self.evaluation_set]
        self.enter(Phase.END if is_last else Phase.VALIDATE)

    @contextmanager
    def evaluating(self, name: str) -> Iterator[None]:
        """Inside ``with`` the set ``name`` is evaluated by itself, outside of the loop."""
        outer, self.evaluation_set = self.evaluation_set, name
        try:
            yield
        finally:
            self.evaluation_set = outer

    def advance_batch(self, num_samples: int) -> None:
        """Count one training batch of ``num_samples`` samples."""
        self.batch += 1
        self.global_step += 1
        self.samples_seen += num_samples

    def advance_epoch(self) -> None:
        """Count an epoch; the next one has not begun."""
        self.epoch += 1
        self.enter(Phase.BEGIN)

    def position(self) -> tuple[int, int, int, int]:
        """The position in the run; a later one compares greater."""
        # each validation set goes through two phases of its own
        stage = list(Phase).index(self.phase) + 2 * len(self.validated)
        return (self.call, self.epoch, stage, self.batch)

    def state_dict(self) -> dict[str, Any]:
        """The counters and the logs of the current epoch, as plain types."""
        saved = {name: getattr(self, name) for name in self._SAVED}
        for name in self._ADDED:
            if not saved[name]:  # as in most runs, whose files then are those of earlier versions
                del saved[name]
        if self.unshared:
            saved["unshared"] = {name: float(value) for name, value in self.unshared.items()}
        epoch_logs = dict(self.epoch_logs)
        if self.phase is not Phase.BEGIN and self.last_lr is not None:
            epoch_logs["lr"] = float(self.last_lr)
        return {
            **saved,
            "phase": self.phase.value,
            "epoch_logs": epoch_logs,
            "contributed": {name: float(value) for name, value in self.logged.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters, or raise ``CheckpointError`` without any change."""
        state_dict = {**{name: getattr(FitState(), name) for name in self._ADDED}, **state_dict}
        unshared = dict(state_dict.pop("unshared", {}))
        expected = {*self._SAVED, "phase", "epoch_logs", "contributed"}
        if set(state_dict) != expected:
            raise CheckpointError(
                f"the progress in the checkpoint does not fit: missing "
                f"{listed(expected - set(state_dict))}, unknown "
                f"{listed(set(state_dict) - expected)}. Resume with the fitkit that wrote it."
            )
        phases = {phase.value: phase for phase in Phase}
        if state_dict["phase"] not in phases:
            raise CheckpointError(
                f"the progress in the checkpoint does not fit: its phase must be one of "
                f"{listed(phases)}, received {state_dict['phase']!r}. Resume with the fitkit that "
                f"wrote it."
            )
        for name in self._SAVED:
            setattr(self, name, state_dict[name])
        self.validated = list(self.validated)
        self.phase = phases[state_dict["phase"]]
        self.epoch_logs = dict(state_dict["epoch_logs"])
        # inside an epoch it is not logged yet
        self.last_lr = None if self.phase is Phase.BEGIN else self.epoch_logs.pop("lr", None)
        self.logged = dict(state_dict["contributed"])
        if self.unshared is None:
            self.logged |= unshared
        else:
            self.unshared = unshared
