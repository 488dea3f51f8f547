"""TrainStep: forward, backward, gradient accumulation and the optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import ConfigurationError, DataError
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS
from fitkit.core.state import FitState
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share, StepOutput
from fitkit.engine.accumulation_window import AccumulationWindow
from fitkit.engine.clear_gradients import OptimizedParameters, clear_gradients
from fitkit.engine.clip_gradients import clip_norm, clip_value
from fitkit.engine.forward import Count, Forward
from fitkit.engine.lr_schedule import Schedule

if TYPE_CHECKING:  # torch's distributed package takes long to import
    from fitkit.distributed.step_sync import StepSync

_ALONE = nullcontext()


class Stepper(Protocol):
    """What takes an optimizer step: the optimizer, or its compiled ``step``."""

    def step(self) -> Any:
        """Take the step."""


class TrainStep:
    """A training step: forward, backward, and an optimizer step when the window is full.

    An accumulation window is ``accumulation`` batches whose gradients are added. Each batch counts
    by the weight of its loss, so a window equals one large batch, also where its last batch is
    short. Batches without weight on any rank, and those that a custom step skips, are left out.

    ``modules`` are the model and the loss, and ``optimizer`` is ``None`` where a custom step brings
    its own. A backward pass averages gradients over the ranks of ``sync``; ``None``: one rank.
    ``stepper`` steps in the optimizer's place.
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
        sync: StepSync | None = None,
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
        self._sync = sync
        self._optimized = OptimizedParameters(optimizer, modules)
        self._window = AccumulationWindow()
        self._is_own = False  # the last batch, or a loaded one, had a backward pass of its own

    def __call__(self, batch: Any, *, is_last: bool, count: Count) -> tuple[StepOutput | None, int]:
        """Train on one batch.

        Args:
            batch: the batch, or this rank's share of it.
            is_last: whether it is the epoch's last one, which closes the window in any case.
            count: counts its samples.

        Returns:
            the step's output, ``None`` if it skipped the batch, and the samples of all ranks.
        """
        if self._sync is None:
            return self._train(batch, is_last=is_last, count=count)
        try:
            return self._train(batch, is_last=is_last, count=count)
        finally:
            self._sync.end_step()

    def _train(self, batch: Any, *, is_last: bool, count: Count) -> tuple[StepOutput | None, int]:
        with _ALONE if self._sync is None else self._sync.step(lambda: count(batch, None)):
            output, share = self._forward(batch, count)
        samples: Any = 0 if output is None else output.num_samples
        weight = 0 if output is None else output.weight
        total_samples, total = samples, weight
        end_of_sum = None
        if self._sync is not None:
            total_samples, total, end_of_sum = self._over_ranks(
                self._sync, output, samples, weight, share
            )
        self._is_own = output is not None and not output.backward
        if self._is_own:
            self._count_step()
        elif not _is_zero(total):
            self._optimized.drop_other_gradients()
            factor, is_full = self._window.join(
                weight,
                total,
                samples=total_samples,
                size=self._accumulation(),
                num_ranks=1 if self._sync is None else self._sync.size,
                is_last=is_last,
            )
            self._backward(self._scaled(output, weight, factor), is_full=is_full)
            if end_of_sum is not None:
                total_samples, total = end_of_sum()
                self._window.weigh(total)
            if _is_zero(total):
                self._drop_gradients()
            elif is_full:
                self._take_step()
        return output, total_samples

    def _over_ranks(
        self, sync: StepSync, output: StepOutput | None, samples: Any, weight: Any, share: Share
    ) -> tuple[int, Any, Callable[[], tuple[int, float]] | None]:
        """Samples and weight of the batches of all ranks; or what waits for them, if not ``None``.

        To wait only after the backward pass saves the time. A window of several batches has to know
        before it whether there is any weight, and a custom step whether all ranks go on.
        """
        if share.total is not None and not self._forward.counts_by_itself:
            return share.total, share.total, None
        is_single = self._accumulation() == 1 and not self._window.batches
        if is_single and not sync.is_custom and self._window.last_weight:
            return 0, None, sync.begin_sum_counts(float(samples), float(weight))
        is_own = output is not None and not output.backward
        total_samples, total = sync.sum_counts(float(samples), float(weight), is_own=is_own)
        self._window.last_weight = 0 if sync.is_custom else total
        return total_samples, total, None

    def _scaled(self, output: StepOutput | None, weight: Any, factor: Any) -> Tensor | None:
        """The loss times its factor; ``None``: this rank has none, and others have."""
        if self._sync is not None and (output is None or _is_zero(weight)):
            return self._sync.without_weight(None if output is None else output.loss)
        loss: Tensor = output.loss  # type: ignore[union-attr]
        if isinstance(factor, Tensor):
            return loss * factor.to(loss.dtype)
        return loss if factor == 1.0 else loss * factor

    def finish(self) -> None:
        """Called at the end of a pass: take the step of a window that no batch will fill."""
        if self._window.batches:
            if self._sync is not None:
                self._sync.average_gradients()
            self._take_step()
        if self._sync is not None:
            self._sync.compare_weights()

    def _backward(self, loss: Tensor | None, *, is_full: bool) -> None:
        if self._optimizer is None:
            raise ConfigurationError("no optimizer is set: call handler.set_optimizer(...).")
        if loss is not None and not loss.requires_grad:
            raise DataError(
                "the loss does not depend on any parameter that requires a gradient: check that "
                "the model is used, that its parameters are not all frozen, and that nothing "
                "detaches the loss."
            )
        if self._sync is not None:
            if self._window.batches <= 1:  # else it holds gradients that are not yet averaged
                self._sync.compare_gradients("before backward")
            self._sync.backward(loss, self._precision.backward, is_full=is_full)
        elif loss is not None:
            self._precision.backward(loss)

    def _take_step(self) -> None:
        optimizer = self._optimizer
        if optimizer is None:
            return
        self._precision.unscale(optimizer)
        correction = self._window.correction()
        if correction is not None:
            self._scale_gradients(correction)
        self._callbacks.fire(Event.OPTIMIZER_STEP_BEGIN, self._state.optimizer_steps, EMPTY_LOGS)
        if self._sync is not None:  # callbacks may have changed them
            self._sync.compare_gradients("optimizer step")
        self._clip()
        if self._precision.step(self._stepper):
            self._count_step()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        if self._optimizer is not None:
            clear_gradients(self._optimizer)
        self._window.close()

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
            clip_norm(self._optimized.parameters(), self._clip_norm)
        if self._clip_value is not None:
            clip_value(self._optimized.parameters(), self._clip_value)

    def _scale_gradients(self, factor: Any) -> None:
        for parameter in self._optimized.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def close(self) -> None:
        """Called at the end of the run."""
        if self._sync is not None:
            self._sync.close()

    def state_dict(self, laid_aside: Mapping[Tensor, Tensor | None]) -> dict[str, Any]:
        """Counts and gradients of a window that is not full; empty between windows.

        A step with a backward pass of its own may use any gradient that it has left. During an
        evaluation, gradients are those that it has ``laid_aside``, by parameter.
        """
        named: dict[str, nn.Parameter] = {}
        if self._window.batches or self._is_own:
            named = self._modules.named_parameters()
        if self._window.batches:
            optimized = set(map(id, self._optimized.parameters()))
            named = {name: p for name, p in named.items() if id(p) in optimized}
        return self._window.state_dict({n: laid_aside.get(p, p.grad) for n, p in named.items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a window that is not full, or raise ``CheckpointError``."""
        self._window.load_state_dict(state_dict, self._modules.named_parameters())
        self._is_own = bool(state_dict.get("gradients")) and not self._window.batches


def _is_zero(weight: Any) -> bool:
    """Whether a batch has no weight; a weight on the device is not read."""
    return not isinstance(weight, Tensor) and weight == 0
