"""OwnBackward: backward passes and optimizer steps that a custom training step runs itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import Share
from fitkit.distributed.average_gradients import average_gradients
from fitkit.distributed.compare_gradients import require_equal_gradients
from fitkit.distributed.dtensor import is_dtensor
from fitkit.distributed.step_events import INSTEAD, StepEvent, reach_together
from fitkit.distributed.world import World


class OwnBackward:
    """Makes the backward passes and optimizer steps inside a custom step those of all ranks.

    At the end of each backward pass the gradients that it has added are replaced by their mean over
    the ranks, weighted by samples, so that clipping and optimizers see those of the whole batch.
    The loss that an optimizer's closure returns is the mean too.

    Attributes:
        after_optimizer_step: called after each optimizer step inside a step.

    Args:
        world: the ranks.
        named: the parameters that ranks train together, by name. Those that are sharded are left
            to FSDP.
    """

    def __init__(self, world: World, named: Callable[[], Mapping[str, Tensor]]) -> None:
        self._world, self._named = world, named
        self.after_optimizer_step: Callable[[], None] | None = None
        self._parameters: Mapping[str, Tensor] | None = None
        self._handles: list[Any] = []
        self._held: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._compared: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._strangers: list[weakref.ref[Optimizer]] = []
        self._count: Callable[[], Share] | None = None  # set while a step runs
        self._samples: int | None = None
        self._weight: float | None = None  # set during a backward pass of the step
        self._num_steps = 0

    @contextmanager
    def during_step(self, count: Callable[[], Share]) -> Iterator[None]:
        """Inside ``with``, backward passes are those of the step; ``count``: counts its samples."""
        self._install()
        self._count, self._samples, self._weight, self._num_steps = count, None, None, 0
        try:
            yield
        finally:
            self._count = None
            self._held.clear()
        if self._strangers:
            self._require_no_strangers()

    def end(self, samples: float, weight: float, *, is_own: bool) -> tuple[float, float]:
        """Samples and weight of all ranks; ``is_own``: the step returned ``backward=False``.

        Raises:
            ConfigurationError: ranks have run other backward passes or optimizer steps.
        """
        steps = self._num_steps
        message = (samples, weight, float(is_own), float(steps), float(steps**2))
        samples, weight, num_own, total, of_squares = reach_together(
            self._world, StepEvent.END, *message
        )
        size = self._world.size
        if num_own not in (0, size):
            raise ConfigurationError(
                f"{num_own:.0f} of {size} ranks returned StepOutput(backward=False) for a batch: "
                f"return it on all ranks or on none. {INSTEAD}"
            )
        if total**2 != size * of_squares:
            raise ConfigurationError(
                f"the training step stepped its optimizers {steps} times on rank "
                f"{self._world.rank} and a different number of times on others, so weights would "
                f"differ: let the decision depend on what is equal on all ranks. {INSTEAD}"
            )
        return samples, weight

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parameters = None

    def _install(self) -> None:
        named = self._named()
        if named is self._parameters:
            return
        self.close()
        self._parameters = named
        self._handles.append(register_optimizer_step_pre_hook(self._before_optimizer_step))
        self._handles.append(register_optimizer_step_post_hook(self._after_optimizer_step))
        for parameter in self._whole().values():
            is_trained = parameter.requires_grad  # torch takes no hooks if not; it may come later
            hook = partial(self._before_accumulation, weakref.ref(parameter))
            handle = parameter.requires_grad_().register_hook(hook)  # type: ignore[no-untyped-call]
            self._handles.append(handle)
            parameter.requires_grad_(is_trained)

    def _whole(self) -> dict[str, Tensor]:
        named = self._parameters or {}
        return {n: p for n, p in named.items() if p.is_floating_point() and not is_dtensor(p)}

    # ---- backward passes ------------------------------------------------------------------------

    def begin_pass(self) -> float | None:
        """The share of this rank in the mean; ``None``: the pass is not one of a step.

        Hooks call it before gradients are added. All ranks have to be in a pass.

        Raises:
            ConfigurationError: other ranks are not.
        """
        if self._count is None:
            return None
        if self._weight is None:
            samples = self._own_samples()
            total, *_ = reach_together(self._world, StepEvent.BACKWARD, samples)
            self._weight = samples / total if total else 0.0
            Variable._execution_engine.queue_callback(self._end_pass)  # noqa: SLF001
        return self._weight

    def _before_accumulation(self, reference: weakref.ref[Tensor], gradient: Tensor) -> None:
        """Lay aside what is in ``grad``, so that it will hold what this pass adds."""
        parameter = reference()
        if self._count is None or parameter is None or id(parameter) in self._held:
            return
        self.begin_pass()
        self._hold(parameter)

    def _hold(self, parameter: Tensor) -> None:
        self._held[id(parameter)] = (parameter, parameter.grad)
        parameter.grad = None

    @torch.no_grad()
    def _end_pass(self) -> None:
        """Called at the end of a backward pass: average what it has added."""
        weight, self._weight = self._weight, None
        whole = self._whole().values()
        for parameter in whole:
            if id(parameter) not in self._held:  # other ranks may have a gradient of it
                self._hold(parameter)
        average_gradients(self._world, whole, weight)
        for parameter, before in self._held.values():
            parameter.grad = _sum(before, parameter.grad)
        self._held.clear()

    def _own_samples(self) -> int:
        if self._samples is None:
            self._samples = 0 if self._count is None else self._count().local or 0
        return self._samples

    # ---- optimizers -----------------------------------------------------------------------------

    def _before_optimizer_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._count is None:
            return None
        self._num_steps += 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._look_at(optimizer)
            return None
        closure = partial(self._mean_closure, optimizer, closure)
        return (args[0], closure), {k: v for k, v in kwargs.items() if k != "closure"}

    def _after_optimizer_step(self, *_: Any) -> None:
        if self._count is not None and self.after_optimizer_step is not None:
            self.after_optimizer_step()

    def _mean_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        """The mean over the ranks of what a closure returns, by which all take the same step."""
        loss = closure()
        self._look_at(optimizer)
        if loss is None:
            return None
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        samples = self._own_samples()
        values = (samples, samples * float(loss)) if samples else (0.0, 0.0)
        total, of_losses, *_ = reach_together(self._world, StepEvent.CLOSURE, *values)
        mean = of_losses / total if total else float(loss)
        return loss.new_tensor(mean) if isinstance(loss, Tensor) else mean

    def _look_at(self, optimizer: Optimizer) -> None:
        """The first time, raise if gradients differ; note an optimizer of other parameters."""
        if optimizer in self._compared:
            return
        self._compared.add(optimizer)
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = self._parameters or {}
        known = {name: p for name, p in named.items() if id(p) in mine}
        if len(known) < len(mine):
            self._strangers.append(weakref.ref(optimizer))
        if known:
            reach_together(self._world, StepEvent.COMPARE)
            require_equal_gradients(self._world, known)

    def _require_no_strangers(self) -> None:
        """Raise for an optimizer of unknown parameters that outlives the step.

        Others adapt copies inside the step, which are this rank's own.
        """
        gc.collect()
        alive = [optimizer for one in self._strangers if (optimizer := one()) is not None]
        self._strangers.clear()
        for optimizer in alive:
            raise ConfigurationError(
                f"the training step steps {type(optimizer).__name__} with parameters that belong "
                f"neither to the model nor to the loss, so that each rank would train its own: "
                f"make their network a part of the model, such as one nn.Module that has both."
            )


def _sum(before: Tensor | None, added: Tensor | None) -> Tensor | None:
    """``before`` with what a pass has added, in its memory as autograd does it."""
    if before is None or added is None:
        return added if before is None else before
    if before.is_sparse and not added.is_sparse:
        return added.add_(before)
    return before.add_(added)
