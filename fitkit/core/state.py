"""FitState: where a run stands."""

from __future__ import annotations

from enum import Enum
from typing import Any

from fitkit.core.errors import CheckpointError, listed


class Phase(str, Enum):
    """What the loop does next within ``FitState.epoch``."""

    BEGIN = "begin"  # the epoch has not begun
    TRAIN = "train"  # training on its batches
    VALIDATE = "validate"  # trained; validation, if due, has not begun
    TEST = "test"  # inside validation
    END = "end"  # all is computed; schedules and hooks of the epoch's end are to come


class FitState:
    """Where a run stands. Read it anywhere; only the loop moves it, and ``stop`` is for everyone.

    Args:
        wishes: attributes of the model, where code that was written for Keras sets
            ``stop_training``.

    Counters run over the whole life of the handler, across calls of ``fit`` and across restarts.
    They move *before* the end-of-batch and end-of-epoch hooks run, so that what those hooks save
    goes on with the next batch or epoch.

    Attributes:
        epoch: epochs completed, which is also the index (from 0) of the epoch in progress.
        batch: batches completed in the current phase (training or validation) of this epoch.
        global_step: training batches completed over all epochs.
        optimizer_steps: optimizer steps taken; steps that a loss scaler skipped do not count.
        samples_seen: training samples processed over all epochs.
        phase: what the loop does next in this epoch.
        call: how many calls of ``fit`` were made on this run, from 1.
        first_epoch: value of ``epoch`` when the current call of ``fit`` began.
        first_step: value of ``global_step`` when the current call of ``fit`` began.
        stop_reason: why the current call ended or is about to end early, or ``None``.
        stop_is_final: whether a resume must keep to that reason; limits of one call, such as
            ``max_steps``, are judged anew.
        stopped_non_finite: whether that reason is a value that is not finite.
        mid_step: whether a training step is under way; a checkpoint of such a moment cannot
            promise an exact continuation.
    """

    _SAVED = (
        "epoch",
        "batch",
        "global_step",
        "optimizer_steps",
        "samples_seen",
        "call",
        "first_epoch",
        "first_step",
        "stop_reason",
        "stop_is_final",
        "stopped_non_finite",
        "mid_step",
    )

    def __init__(self, wishes: dict[str, Any] | None = None) -> None:
        self._wishes = {} if wishes is None else wishes
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
        self.epoch_logs: dict[str, float] = {}
        self.contributed: dict[str, Any] = {}

    @property
    def stopping(self) -> bool:
        """Whether somebody asked this call of ``fit`` to end."""
        if self._wishes.get("stop_training"):
            self.stop("model.stop_training was set")
        return self.stop_reason is not None

    def stop(self, reason: str, *, non_finite: bool = False, final: bool = True) -> None:
        """End training after the current batch; the epoch's end and the final hooks still run.

        Args:
            reason: one sentence for people; the first reason given is kept.
            non_finite: the reason is a loss or metric that is not finite; savers then write neither
                a best nor a last checkpoint.
            final: resuming the run does not train on; ``False`` for limits that a later script may
                set differently.
        """
        if self.stop_reason is None:
            self.stop_reason = reason
            self.stop_is_final = final
        self.stopped_non_finite = self.stopped_non_finite or non_finite

    def begin_call(self) -> None:
        """A new call of ``fit`` that does not resume an interrupted one."""
        self.call += 1
        self.first_epoch = self.epoch
        self.first_step = self.global_step
        self.clear_stop()

    def clear_stop(self) -> None:
        """Forget an earlier wish to stop."""
        if "stop_training" in self._wishes:
            self._wishes["stop_training"] = False
        self.stop_reason = None
        self.stop_is_final = True
        self.stopped_non_finite = False

    def enter(self, phase: Phase) -> None:
        """Go to the next phase of the epoch, at its first batch."""
        self.phase = phase
        self.batch = 0

    def advance_batch(self, num_samples: int) -> None:
        """One training batch of ``num_samples`` samples is done."""
        self.batch += 1
        self.global_step += 1
        self.samples_seen += num_samples

    def advance_epoch(self) -> None:
        """The epoch is done; what comes next is the beginning of the following one."""
        self.epoch += 1
        self.enter(Phase.BEGIN)

    def place(self) -> tuple[int, int, int, int]:
        """The place in the run, comparable: later is greater."""
        return (self.call, self.epoch, list(Phase).index(self.phase), self.batch)

    def state_dict(self) -> dict[str, Any]:
        """The counters, and what the unfinished epoch has logged so far, as plain types."""
        saved = {name: getattr(self, name) for name in self._SAVED}
        return {
            **saved,
            "phase": self.phase.value,
            "epoch_logs": dict(self.epoch_logs),
            "contributed": {name: float(value) for name, value in self.contributed.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counters; unknown or missing names are an error and change nothing."""
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
        self.phase = phases[state_dict["phase"]]
        self.epoch_logs = dict(state_dict["epoch_logs"])
        self.contributed = dict(state_dict["contributed"])
