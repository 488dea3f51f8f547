"""CapturedStep: a training step that is recorded once and replayed from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import SGD, Optimizer

from fitkit.core.callback_list import Event
from fitkit.core.errors import ConfigurationError, add_note
from fitkit.core.types import Share, StepOutput
from fitkit.engine.conditions import Conditions, Same
from fitkit.engine.recordings import (
    Graphs,
    Recording,
    detached,
    fixed,
    give,
    gradients_of,
    signature,
)
from fitkit.engine.steps import TrainStep, clear_gradients

WARM_UP = 3  # like batches in a row before one is recorded, as in torch's notes on CUDA
MOST_RECORDINGS = 8  # each keeps memory of its own


class Average(Protocol):
    """An average of weights whose device work can be recorded."""

    def move(self, module: nn.Module) -> None:
        """Move by one step, on the device alone."""

    def has_moved(self) -> None:
        """A replay moved it: the next update only counts."""


@dataclass(frozen=True)
class Capture:
    """What a captured step needs besides what every step needs.

    Attributes:
        graphs: who records.
        average: the average of weights that a step may move as its last act, or ``None``.
        beyond: what the loss depends on besides batch and model, such as the epoch.
        measured: whether outputs are read after the step.
        tell: is told in a sentence what is not recorded, and why.
    """

    graphs: Graphs
    average: Callable[[], Average | None]
    beyond: Callable[[], Hashable]
    measured: bool
    tell: Callable[[str], None]


class CapturedStep(TrainStep):
    """A ``TrainStep`` with the same results, bit for bit, that replays what it has recorded.

    After ``WARM_UP`` batches of one form in a row the next one is recorded: a whole step (forward,
    backward, clipping, the optimizer's step, the average of weights), or forward and backward
    alone where the rest needs the host. Batches of another form run as usual, and so does
    everything after something has changed that a recording took for granted, until it is recorded
    anew.

    Args:
        arguments: those of ``TrainStep``, with an optimizer.
        capture: what recording needs.
        options: those of ``TrainStep``.
    """

    def __init__(self, *arguments: Any, capture: Capture, **options: Any) -> None:
        self._begun_by: Recording | None = None  # whose gradients an open window adds to
        super().__init__(*arguments, **options)
        optimizer = self._optimizer
        if optimizer is None:
            raise ConfigurationError("no optimizer is set: call set_optimizer.")
        self._capture = capture
        self._stepped: Optimizer = optimizer
        self._conditions = Conditions(self._module, optimizer, capture.beyond)
        self._recordings: dict[Hashable, Recording] = {}
        self._granted: Any = None
        self._form: Hashable = None
        self._in_a_row = 0
        self._sizes: dict[Hashable, int] = {}
        self._host_part = why_not_recorded(optimizer)
        if self._precision.reads_to_step:
            self._host_part = "the loss scaler reads whether gradients overflowed"
        self._told: set[str] = set()

    def __call__(
        self, batch: Any, *, is_last: bool, share: Share | None = None
    ) -> tuple[StepOutput, int]:
        """Train on one batch, by a recording where one fits."""
        batch = self._forward.place(batch)
        is_whole = self._is_whole()
        self._forget_if_changed(is_whole=is_whole)
        self._note_form(batch)
        recording = self._recording_for(batch, is_whole=is_whole)
        if recording is None:
            with self._capture.graphs.aside(), warnings.catch_warnings():
                # torch would rather have no capturable optimizer step without a graph
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                output, own = super().__call__(batch, is_last=is_last, share=share)
            self._sizes[self._form] = own
            return output, own
        own = self._sizes[self._form]
        _, is_full = self._weigh(own, own, is_last=is_last)
        if self._batches == 1:
            self._begun_by = recording
        output = recording.run(batch, self._conditions.parameters, measured=self._capture.measured)
        if is_whole:
            self._after_whole_step()
        elif is_full:
            self._take_step()
        return output, own

    def finish(self) -> None:
        """Step on what is left; what the next epoch begins with is looked up anew."""
        super().finish()
        if not self._recordings:
            self._tell("no step was recorded", self._obstacle())
        self._conditions.renew()

    def _close_window(self) -> None:
        super()._close_window()
        self._begun_by = None

    # ---- whether a recording fits ---------------------------------------------------------------

    def _is_whole(self) -> bool:
        """Whether the optimizer's step may be part of a recording."""
        reason = self._host_part
        if self._callbacks.listens(Event.OPTIMIZER_STEP_BEGIN):
            reason = "a callback looks at the gradients before it"
        elif self._conditions.has_hooks_of_step():
            reason = "a hook is registered on the optimizer"
        elif self._accumulation() > 1:
            reason = "it comes after several batches"
        if reason:
            self._tell("forward and backward are recorded, the optimizer's step is not", reason)
        return not reason

    def _forget_if_changed(self, *, is_whole: bool) -> None:
        step, settings = None, None
        if is_whole:
            average = Same([self._capture.average()])
            step, settings = (self._conditions.of_step(), average), self._conditions.settings()
        granted = (is_whole, self._conditions.of_pass(), step, settings)
        if granted == self._granted:
            return
        before, self._granted = self._granted, granted
        self._recordings.clear()
        self._begun_by = None
        self._in_a_row = 0
        if before and is_whole and before[0] and before[3] != settings and self._state.batch:
            self._host_part = "its settings change between steps: keep them in tensors"

    def _note_form(self, batch: Any) -> None:
        form = None if self._conditions.has_hooks() else signature(batch)
        self._in_a_row = self._in_a_row + 1 if form == self._form else 1
        self._form = form

    def _obstacle(self) -> str:
        if self._conditions.has_hooks():
            return "hooks are registered on the model, which a replay would not call"
        if self._form is None:
            return "a batch holds something else than plain tensors"
        return f"it takes {WARM_UP + 1} batches of one form in a row, with nothing else changing"

    def _tell(self, what: str, why: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._capture.tell(f"capture: {what}: {why}")

    # ---- recording ------------------------------------------------------------------------------

    def _recording_for(self, batch: Any, *, is_whole: bool) -> Recording | None:
        """The recording that this batch can be put into, made now if it is time."""
        begun_by = self._begun_by
        if self._form is None or (self._batches and begun_by is None):
            return None
        # with the form, these two decide the weight of the batch in its window
        key = (self._form, self._accumulation(), self._expected, id(begun_by))
        recording = self._recordings.get(key)
        if recording is None and self._in_a_row > WARM_UP:
            if len(self._recordings) >= MOST_RECORDINGS:
                self._recordings.clear()
            recording = self._recordings[key] = self._record(batch, is_whole=is_whole)
        if recording is None:
            return None
        found = gradients_of(self._conditions.parameters)
        return recording if Same(found) == Same(recording.before) else None

    def _record(self, batch: Any, *, is_whole: bool) -> Recording:
        inputs, parameters = fixed(batch), self._conditions.parameters
        own = self._sizes[self._form]
        size = self._accumulation()
        weight = 1.0 if size == 1 else own / (self._expected or size * own)

        def step() -> tuple[StepOutput, list[Any]]:
            output, _ = self._forward(inputs)
            self._backward(output.loss if weight == 1.0 else output.loss * weight)
            if is_whole:
                self._optimize()
            return detached(output), gradients_of(parameters)

        before = gradients_of(parameters)
        try:
            replay, (output, gradients) = self._capture.graphs.record(
                step, self._conditions.generators()
            )
        except Exception as error:
            add_note(error, "raised while the step was recorded: pass capture=False to fit")
            raise
        finally:
            give(parameters, before)
        return Recording(inputs, replay, output, before, gradients)

    def _optimize(self) -> None:
        self._clip()
        self._precision.step(self._stepper)
        average = self._capture.average()
        if average is not None:
            average.move(self._module)

    def _after_whole_step(self) -> None:
        average = self._capture.average()
        if average is not None:
            average.has_moved()
        self._count_step()
        clear_gradients(self._stepped)


def why_not_recorded(optimizer: Optimizer) -> str:
    """Why a step of ``optimizer`` cannot be recorded; empty if it can.

    Optimizers that count steps on the host would go on with the count of the recorded step.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    if type(optimizer) is SGD:
        is_number = all(not hasattr(group["lr"], "data_ptr") for group in groups)
        return "" if is_number else "SGD reads a learning rate that is a tensor"
    if all(group.get("capturable") for group in groups):
        return ""
    if any("capturable" in group for group in groups):
        return f"{name} counts steps on the host unless it gets capturable=True"
    return f"{name} does not say that it can be recorded (it has no capturable=True)"
