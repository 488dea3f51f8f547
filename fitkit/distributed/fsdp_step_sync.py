"""FSDPStepSync: a training step of a sharded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.average_gradients import average_gradients
from fitkit.distributed.dtensor import is_dtensor
from fitkit.distributed.gathered_model import GatheredModel, explained
from fitkit.distributed.step_sync import Count, StepSync
from fitkit.distributed.world import World


class FSDPStepSync(StepSync):
    """Averages the gradients of the loss; those of the model, FSDP reduces in the backward pass."""

    def __init__(
        self,
        modules: TrainedModules,
        optimizer: Optimizer | None,
        world: World,
        model: GatheredModel,
        *,
        is_custom: bool = False,
        num_batches: int | None = None,
    ) -> None:
        super().__init__(modules, optimizer, world, is_custom=is_custom, num_batches=num_batches)
        self._model = model
        self._handles: list[Any] | None = None
        world.copy_from_main([p.detach() for p in self._whole()])
        world.copy_from_main(modules.loss_buffers())

    def _whole(self) -> list[Tensor]:
        """The parameters that each rank has whole: those of the loss and of the optimizer alone."""
        return [p for p in self.named_parameters().values() if not is_dtensor(p)]

    @contextmanager
    def step(self, count: Count) -> Iterator[None]:
        """The context of a step, in which any part of the model may be called."""
        if self._own is not None and self._handles is None:
            self._handles = self._model.register_hooks(self._scaled)
            self._own.after_optimizer_step = self._model.gather_root
            self._model.keeps_changes = True
        # to gather the root a second time would take as long as the rest of a small step; a step
        # of the user's own may have run its backward passes already
        with self._model.running(keeps_root=self._own is None), super().step(count):
            yield

    def end_step(self) -> None:
        """Shard the root, if no backward pass has followed."""
        self._model.release()

    def _scaled(self, gradient: Tensor) -> Tensor | None:
        """In a backward pass of a step, weight a gradient, of which FSDP takes the mean."""
        weight = None if self._own is None else self._own.begin_pass()
        if weight is None:
            return None
        self._model.keep_changes()
        self._model.finish_pass()
        return gradient * (weight * self._world.size) if weight else torch.zeros_like(gradient)

    def copy_buffers(self) -> None:
        """Copy the buffers of the loss from rank 0."""
        self._world.copy_from_main(self._modules.loss_buffers())

    def without_weight(self, loss: Tensor | None) -> Tensor | None:
        """The batch's own loss without gradients, as all ranks must call the model's blocks."""
        return None if loss is None else loss.nan_to_num() * 0.0

    def backward(self, loss: Tensor | None, run: Callable[..., None], *, is_full: bool) -> None:
        """See ``StepSync``; averages after each pass, as FSDP does, so the mean so far is equal."""
        if loss is not None:  # steps of sharded models may not skip batches
            self._model.prepare_backward(loss)
            with explained(), self._world.in_step():
                run(loss)
        self._model.release()
        average_gradients(self._world, [p for p in self._whole() if p.requires_grad])

    def average_gradients(self) -> None:
        """Nothing is left to average."""

    def close(self) -> None:
        """Remove the hooks."""
        super().close()
        for handle in self._handles or ():
            handle.remove()
        self._handles = None
        self._model.keeps_changes = False
