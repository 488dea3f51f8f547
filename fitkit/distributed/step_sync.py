"""StepSync: what a training step does together with the other ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.loss_sync import make_loss_sync
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World


class StepSync:
    """The part of a training step that all ranks take together.

    Args:
        model: the model, as training calls it.
        modules: the model without wrappers, and the loss.
        world: the ranks.
        parallel: how they train one model.
    """

    def __init__(
        self, model: nn.Module, modules: TrainedModules, world: World, parallel: Parallel
    ) -> None:
        ranks = parallel.data_world(world)
        self.size, self.sum = ranks.size, ranks.sum
        self._model, self._modules, self._parallel = model, modules, parallel
        self._loss_sync = make_loss_sync(modules, world, parallel)
        self._has_called_model = False
        self._skipped: Tensor | None = None
        model.register_forward_pre_hook(lambda *_: self._note_call())

    def _note_call(self) -> None:
        self._has_called_model = True

    def before_batch(self) -> None:
        """Copy the buffers of the loss from rank 0."""
        self._has_called_model = False
        self._skipped = None
        if self._loss_sync is not None:
            self._loss_sync.before_batch()

    def skip_batch(self) -> None:
        """Called for a batch that the step skipped, before its weight is summed over the ranks.

        The other ranks have called the model, which communicates.
        """
        if not self._has_called_model:
            self._skipped = self._parallel.zero_loss(self._model, None, has_called_model=False)

    def zero_loss(self, loss: Tensor | None) -> Tensor:
        """A loss without gradients, whose backward pass takes part in that of the other ranks.

        ``loss``: that of a batch without weight; ``None``: the step skipped the batch.
        """
        if self._skipped is not None:
            return self._skipped
        if loss is not None and loss.isfinite():
            return loss * 0.0
        return self._parallel.zero_loss(self._model, loss, has_called_model=True)

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside ``with``, backward passes need not average gradients."""
        return self._parallel.no_sync(self._model)

    def after_backward(self, *, is_full: bool) -> None:
        """Average the gradients of the loss; ``is_full``: after the window's last batch."""
        if self._loss_sync is not None:
            self._loss_sync.after_backward(is_full=is_full)

    def average_gradients(self) -> None:
        """Average the gradients of a window that ended early."""
        self._parallel.average_gradients(self._modules.parameters())
