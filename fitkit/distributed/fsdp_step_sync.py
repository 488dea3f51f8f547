"""FSDPStepSync: a training step of a sharded model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.average_gradients import average_gradients
from fitkit.distributed.dtensor import is_dtensor
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World


class FSDPStepSync(StepSync):
    """Averages the gradients of the loss; those of the model, FSDP reduces in the backward pass."""

    def __init__(
        self,
        modules: TrainedModules,
        optimizer: Optimizer | None,
        world: World,
        *,
        is_custom: bool = False,
    ) -> None:
        super().__init__(modules, optimizer, world, is_custom=is_custom)
        world.copy_from_main([p.detach() for p in self._whole()])
        world.copy_from_main(modules.loss_buffers())

    def _whole(self) -> list[Tensor]:
        """The parameters that each rank has whole: those of the loss and of the optimizer alone."""
        return [p for p in self.named_parameters().values() if not is_dtensor(p)]

    def copy_buffers(self) -> None:
        """Copy the buffers of the loss from rank 0."""
        self._world.copy_from_main(self._modules.loss_buffers())

    def without_weight(self, loss: Tensor | None) -> Tensor | None:
        """The batch's own loss without gradients, as all ranks must call the model's blocks."""
        return None if loss is None else loss.nan_to_num() * 0.0

    def backward(
        self, loss: Tensor | None, run: Callable[[Tensor], None], *, is_full: bool
    ) -> None:
        """See ``StepSync``; averages after each pass, as FSDP does, so the mean so far is equal."""
        run(loss)  # type: ignore[arg-type]  # steps of sharded models may not skip batches
        average_gradients(self._world, [p for p in self._whole() if p.requires_grad])

    def average_gradients(self) -> None:
        """Nothing is left to average."""
