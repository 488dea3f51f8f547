"""LossSync: keeps a loss module equal on all ranks, which DDP and FSDP do for the model alone."""

from __future__ import annotations

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World


class LossSync:
    """Keeps the parameters and buffers of a loss module equal on all ranks.

    It begins with the values of rank 0.
    """

    def __init__(self, modules: TrainedModules, world: World, parallel: Parallel) -> None:
        self._modules, self._world, self._parallel = modules, world, parallel
        self._parameters = modules.loss_parameters()
        world.copy_from_main([t.detach() for t in (*self._parameters, *modules.loss_buffers())])

    def before_batch(self) -> None:
        """Copy the buffers from rank 0, which are also those that are saved."""
        self._world.copy_from_main(self._modules.loss_buffers())

    def after_backward(self, *, is_full: bool) -> None:
        """Average the gradients; ``is_full``: the window's last batch."""
        self._parallel.sync_loss(self._parameters, is_full=is_full)


def make_loss_sync(modules: TrainedModules, world: World, parallel: Parallel) -> LossSync | None:
    """The sync of a loss on several ranks; ``None`` where there is nothing to do."""
    if world.size == 1 or not (modules.loss_parameters() or modules.loss_buffers()):
        return None
    return LossSync(modules, world, parallel)
