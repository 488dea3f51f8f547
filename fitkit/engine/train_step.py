"""TrainStep: forward, backward, gradient accumulation and the optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import CheckpointError, ConfigurationError, DataError
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS
from fitkit.core.state import FitState
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share, StepOutput
from fitkit.distributed.dtensor import distribute_all_like
from fitkit.engine.clear_gradients import LeftoverGradients, clear_gradients
from fitkit.engine.clip_gradients import clip_norm, clip_value
from fitkit.engine.forward import Forward
from fitkit.engine.lr_schedule import Schedule


class Stepper(Protocol):
    """What takes an optimizer step: the optimizer, or its compiled ``step``."""

    def step(self) -> Any:
        """Take the step."""


class LossSync(Protocol):
    """Keeps the parameters and buffers of a loss module equal on all ranks."""

    def before_batch(self) -> None:
        """Copy the buffers from rank 0."""

    def after_backward(self, *, is_full: bool) -> None:
        """Average the gradients; ``is_full``: the window's last batch."""


class TrainStep:
    """A training step: forward, backward, and an optimizer step when the window is full.

    An accumulation window is ``accumulation`` batches whose gradients are added. Each batch is
    weighted by its samples, so a window equals one large batch, also where its last batch is short.

    ``modules`` are the model and the loss, and ``optimizer`` is ``None`` where a custom step brings
    its own. A backward pass averages gradients of the model over ``num_ranks`` ranks, except inside
    ``no_sync``; ``average`` does so afterwards. ``loss_sync`` does both for the loss, which no
    wrapper averages. ``stepper`` steps in the optimizer's place.
    """

    def __init__(
        self,
        forward: Forward,
        modules: TrainedModules,
        optimizer: Optimizer | None,
        schedule: Schedule,
        callbacks: CallbackList,
        state: FitState,
        *,
        accumulation: Callable[[], int],
        clip_norm: float | None = None,
        clip_value: float | None = None,
        num_ranks: int = 1,
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
        average: Callable[[Iterable[Tensor]], None] = lambda _: None,
        loss_sync: LossSync | None = None,
        stepper: Stepper | None = None,
    ) -> None:
        self._forward = forward
        self._modules = modules
        self._optimizer = optimizer
        self._precision = forward.precision
        self._stepper: Any = optimizer if stepper is None else stepper
        self._schedule = schedule
        self._callbacks = callbacks
        self._state = state
        self._accumulation = accumulation
        self._clip_norm = clip_norm
        self._clip_value = clip_value
        self._num_ranks = num_ranks
        self._no_sync = no_sync
        self._average = average
        self._leftovers = LeftoverGradients(optimizer, modules)
        self._loss_sync = loss_sync
        self._close_window()

    def __call__(
        self, batch: Any, *, is_last: bool, share: Share | None = None
    ) -> tuple[StepOutput, int]:
        """Train on one batch.

        Args:
            batch: the batch, or this rank's share of it.
            is_last: whether it is the epoch's last one, which closes the window in any case.
            share: the share's size; ``None``: the batch is whole.

        Returns:
            the step's output, and the samples of this rank.
        """
        if self._loss_sync is not None:
            self._loss_sync.before_batch()
        output, num_samples = self._forward(batch)
        own, total = (num_samples, num_samples) if share is None else share
        if not output.backward:
            self._count_step()
            return output, own
        if not self._batches:
            self._leftovers.drop()
        weight, is_full = self._weigh(own, total, is_last=is_last)
        with nullcontext() if is_full else self._no_sync():
            self._backward(output.loss if weight == 1.0 else output.loss * weight)
        if self._loss_sync is not None:
            self._loss_sync.after_backward(is_full=is_full)
        if is_full:
            self._take_step()
        return output, own

    def _weigh(self, own: int, total: int, *, is_last: bool) -> tuple[float, bool]:
        """Add a batch to the window: its weight, and whether the window is now full."""
        size = self._accumulation()
        part = own * self._num_ranks  # a backward pass takes the mean over ranks, not the sum
        if size == 1:
            return part / total, True
        if not self._batches:
            self._expected = size * total
        self._batches += 1
        self._samples += total
        return part / self._expected, self._batches >= size or is_last

    def finish(self) -> None:
        """Take the step of a window that no further batch will fill."""
        if self._batches:
            self._average(self._modules.parameters())
            self._take_step()

    def _backward(self, loss: Tensor) -> None:
        if self._optimizer is None:
            raise ConfigurationError("no optimizer is set: call handler.set_optimizer(...).")
        if not loss.requires_grad:
            raise DataError(
                "the loss does not depend on any parameter that requires a gradient: check that "
                "the model is used, that its parameters are not all frozen, and that nothing "
                "detaches the loss."
            )
        self._precision.backward(loss)

    def _take_step(self) -> None:
        optimizer = self._optimizer
        if optimizer is None:
            return
        self._precision.unscale(optimizer)
        if self._samples != self._expected:
            self._scale_gradients(self._expected / self._samples)
        self._callbacks.fire(Event.OPTIMIZER_STEP_BEGIN, self._state.optimizer_steps, EMPTY_LOGS)
        self._clip()
        if self._precision.step(self._stepper):
            self._count_step()
        clear_gradients(optimizer)
        if self._batches:
            self._close_window()

    def _count_step(self) -> None:
        """Count an optimizer step, taken here or by a custom step, and step the schedule."""
        step = self._state.optimizer_steps
        self._state.optimizer_steps = step + 1
        if self._optimizer is not None:
            rate = self._optimizer.param_groups[0]["lr"]
            # schedules change a rate that is a tensor in place, and to read it would wait for it
            self._state.last_lr = rate.clone() if isinstance(rate, Tensor) else rate
        self._schedule.after_optimizer_step()
        self._callbacks.fire(Event.OPTIMIZER_STEP_END, step, EMPTY_LOGS)

    def _clip(self) -> None:
        if self._clip_norm is not None:
            clip_norm(self._modules.parameters(), self._clip_norm)
        if self._clip_value is not None:
            clip_value(self._modules.parameters(), self._clip_value)

    def _scale_gradients(self, factor: float) -> None:
        for parameter in self._modules.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _close_window(self) -> None:
        self._batches = 0
        self._samples = 0
        self._expected = 0

    def state_dict(self) -> dict[str, Any]:
        """Counts and gradients of a window that is not full; empty between windows."""
        if not self._batches:
            return {}
        gradients = {
            name: parameter.grad
            for name, parameter in self._modules.named_parameters().items()
            if parameter.grad is not None
        }
        return {
            "batches": self._batches,
            "samples": self._samples,
            "expected": self._expected,
            "gradients": gradients,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a window that is not full.

        Raises:
            CheckpointError: its gradients do not fit the model.
        """
        self._close_window()
        parameters = self._modules.named_parameters()
        for parameter in parameters.values():
            parameter.grad = None
        if not state_dict:
            return
        counts = [state_dict[name] for name in ("batches", "samples", "expected")]
        if not all(type(count) is int and count > 0 for count in counts):
            raise CheckpointError(
                f"the checkpoint's accumulation window must have counts above 0, received "
                f"{counts!r}: use another checkpoint."
            )
        gradients = distribute_all_like(state_dict["gradients"], parameters)
        for name, gradient in gradients.items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise CheckpointError(
                    f"the checkpoint's gradient of {name!r} does not fit this model: resume with "
                    f"the model that was saved, or from a checkpoint at the end of an epoch."
                )
        for name, gradient in gradients.items():
            parameters[name].grad = _gradient_like(gradient, parameters[name])
        self._batches, self._samples, self._expected = counts


def _gradient_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A copy of ``gradient`` on the parameter's device, in the layout and dtype it was saved in."""
    if gradient.layout is torch.strided and gradient.dtype == parameter.dtype:
        return torch.empty_like(parameter).copy_(gradient)  # with the strides that backward gives
    return gradient.detach().to(parameter.device, copy=True)
