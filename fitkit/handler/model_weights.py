"""ModelWeights: the weights of model and loss, and their averages if there are any."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fitkit.checkpointing.format.encoding import encode
from fitkit.checkpointing.read_weights import REMEDY, check_weights, has_own_loading
from fitkit.core.errors import CheckpointError, as_checkpoint_error
from fitkit.core.state_placement import copy_to_host, detached_copy
from fitkit.core.tree import TensorMap, map_tensors
from fitkit.distributed.dtensor import distribute_all_like
from fitkit.distributed.parallel import Parallel
from fitkit.handler.parts import Parts
from fitkit.runtime.lazy_modules import require_values, with_values
from fitkit.runtime.module_state import make_weights_undo
from fitkit.runtime.weight_ema import WeightEMA, saved_decay

_LOSS_REMEDY = "Set the loss as it was when they were saved."


class ModelWeights:
    """The weights of a handler's model and of its loss module.

    Attributes:
        ema: the averaged weights of the model, if there are any.
        trained_before_restore: the weights of the model and the state of its average that training
            had reached, after an interrupted run in which the model was given its best weights.
    """

    def __init__(self, parts: Parts, parallel: Parallel) -> None:
        self._parts = parts
        self._parallel = parallel
        self.ema: WeightEMA | None = None
        self._loss_ema: tuple[nn.Module, WeightEMA] | None = None  # the loss that it averages
        self.trained_before_restore: tuple[dict[str, Any], dict[str, Any] | None] | None = None

    @property
    def _module(self) -> nn.Module:
        return self._parts.module

    @property
    def loss_module(self) -> nn.Module | None:
        """The loss, if it is a module that may have a state."""
        return self._parts.trained_modules.loss

    # ---- averages -------------------------------------------------------------------------------

    def start_ema(self, decay: float) -> WeightEMA:
        """Average the weights from now on; an existing average goes on with this decay."""
        if self.ema is None:
            self.ema = WeightEMA(self._module, decay)
        else:
            self.ema.add_missing(self._module)
            self.ema.set_decay(decay)
        return self.ema

    def update_ema(self) -> None:
        """Update the averages after an optimizer step."""
        if self.ema is None:
            return
        self.ema.update(self._module)
        if (pair := self._average_of_loss(start=True)) is not None:
            loss, average = pair
            average.set_decay(self.ema.decay)
            average.update(loss)

    def drop_ema(self) -> None:
        """Go on without an average."""
        self.ema = self._loss_ema = None

    def _average_of_loss(self, *, start: bool = False) -> tuple[nn.Module, WeightEMA] | None:
        """The loss that is set and its average; with ``start`` a new one if it is trained."""
        loss = self.loss_module
        if self.ema is None or loss is None:
            return None
        if self._loss_ema is None or self._loss_ema[0] is not loss:
            # to average a large frozen network in each step would be in vain
            if not start or not any(p.requires_grad for p in loss.parameters()):
                return None
            self._loss_ema = (loss, WeightEMA(loss, self.ema.decay))
        return self._loss_ema

    def ema_state(self) -> dict[str, Any] | None:
        """The state of the model's average, as ``training`` has its weights."""
        if self.trained_before_restore is not None:
            return self.trained_before_restore[1]
        return None if self.ema is None else self.ema.state_dict()

    def load_ema(self, state: dict[str, Any] | None) -> None:
        """Go on with the average in a checkpoint, or without one if that has none."""
        if not state:
            self.drop_ema()
            return
        ema = self.start_ema(saved_decay(state))
        weights = state.get("weights")
        if isinstance(weights, dict) and weights.keys() != ema.weights().keys():
            state = {**state, "weights": self._renamed(weights)}
        ema.load_state_dict(state)

    def _renamed(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Averages as a model with its own loading of weights names them."""
        if not has_own_loading(self._module):
            return weights
        current = self._module.state_dict()
        extra = {name: v for name, v in current.items() if not isinstance(v, Tensor)}
        undo = make_weights_undo(self._module)
        try:
            self._copy_into(self._module, {**extra, **weights})
            loaded = with_values(self._module.state_dict())
            return {name: detached_copy(value) for name, value in loaded.items()}
        except CheckpointError:
            return weights  # which the average refuses with names and shapes
        finally:
            undo()

    def loss_ema_state(self) -> dict[str, Any] | None:
        """The state of the loss's average; ``None`` if there is none."""
        pair = self._average_of_loss()
        return None if pair is None else pair[1].state_dict()

    def load_loss_ema(self, state: dict[str, Any] | None) -> None:
        """Go on with the average of the loss in a checkpoint, or without one if that has none."""
        if state is None:
            self._loss_ema = None
        elif (pair := self._average_of_loss(start=True)) is not None:
            pair[1].load_state_dict(state)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside ``with`` model and loss have their averaged weights, if there are any."""
        pair = self._average_of_loss()
        with ExitStack() as swaps:
            if self.ema is not None:
                swaps.enter_context(self.ema.swapped_into(self._module))
            if pair is not None:
                swaps.enter_context(pair[1].swapped_into(pair[0]))
            yield

    # ---- the model ------------------------------------------------------------------------------

    def training(self) -> dict[str, Any]:
        """The weights that training updates, also while ``swapped_in``; live tensors."""
        if self.trained_before_restore is not None:
            return self.trained_before_restore[0]
        if self.ema is None:
            return self._module.state_dict()
        return self.ema.trained_weights(self._module)

    def evaluated(self, tensor_map: TensorMap = copy_to_host) -> dict[str, Any]:
        """The weights for evaluation: the averaged ones if there are any; copied to the host."""
        require_values(self._module)
        weights = self._module.state_dict()
        if self.ema is not None:
            weights.update(self.ema.weights())
        on_local = self._parallel.on_local_tensors(tensor_map)
        encoded: dict[str, Any] = encode(weights, tensor_map=on_local)
        return encoded

    def load(
        self,
        weights: Mapping[str, Any],
        *,
        strict: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy ``weights`` into the model; full tensors are sharded as the model's are.

        ``check`` is called as soon as parameters have the shapes that training goes on with.

        Raises:
            CheckpointError: they do not fit, or ``check`` raised it; the model is as it was.
        """
        self._copy_into(self._module, weights, strict=strict, check=check)
        self.trained_before_restore = None

    def restore(self, weights: Mapping[str, Any], *, keep_trained: bool = False) -> None:
        """Copy ``weights`` into the model and into its average.

        With ``keep_trained`` checkpoints hold the replaced weights until training begins again.
        """
        trained = self.trained_before_restore
        if keep_trained and trained is None:
            copied = map_tensors(detached_copy, (self.training(), self.ema_state()))
            trained = (copied[0], copied[1])
        self.load(weights)
        if self.ema is not None:
            self.ema.load_weights(dict(weights))
        self.trained_before_restore = trained if keep_trained else None

    def undo_restore(self) -> None:
        """Undo ``restore(keep_trained=True)``, to go on with training."""
        if self.trained_before_restore is not None:
            weights, average = self.trained_before_restore
            self.load(weights)
            if self.ema is not None and average is not None:
                self.ema.load_state_dict(average)

    def _copy_into(
        self,
        module: nn.Module,
        weights: Mapping[str, Any],
        *,
        strict: bool = True,
        remedy: str = REMEDY,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        own = with_values(module.state_dict())
        undo = make_weights_undo(module) if has_own_loading(module) else None
        if undo is None:
            check()
        try:
            problem = f"the checkpoint's weights do not fit {type(module).__name__}"
            with as_checkpoint_error(problem, remedy):
                module.load_state_dict(distribute_all_like(weights, own), strict=strict)
            if undo is not None:
                check()
        except BaseException:
            if undo is not None:
                undo()
            raise

    # ---- the loss -------------------------------------------------------------------------------

    def loss_state(self) -> dict[str, Any] | None:
        """The loss module's own weights that training updates; ``None`` if it has none."""
        loss, pair = self.loss_module, self._average_of_loss()
        if loss is None:
            return None
        weights = loss.state_dict() if pair is None else pair[1].trained_weights(loss)
        for name in self._parts.trained_modules.shared_with_model():
            del weights[name]
        return weights or None

    def check_loss(self, weights: Mapping[str, Any] | None) -> None:
        """Raise ``CheckpointError`` if ``load_loss`` could not load ``weights``."""
        loss = self.loss_module
        if loss is not None and weights:
            check_weights(loss, self._whole_loss(loss, weights), remedy=_LOSS_REMEDY)

    def load_loss(self, weights: Mapping[str, Any] | None) -> None:
        """Copy ``weights``, if there are any, into the loss module, or raise as ``check_loss``."""
        loss = self.loss_module
        if loss is not None and weights:
            self.check_loss(weights)
            self._copy_into(loss, self._whole_loss(loss, weights), remedy=_LOSS_REMEDY)

    def _whole_loss(self, loss: nn.Module, weights: Mapping[str, Any]) -> Any:
        """``weights`` with those that the loss shares with the model, which are not saved twice."""
        shared = self._parts.trained_modules.shared_with_model()
        of_model = {name: value for name, value in loss.state_dict().items() if name in shared}
        whole: Any = copy.copy(weights)  # keeps the _metadata of a module's state dict
        whole.update(of_model)
        return whole
