"""WeightAverages: the weights that are evaluated, where they are not those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fitkit.checkpointing.read_weights import has_own_loading
from fitkit.core.errors import CheckpointError
from fitkit.core.state_placement import detached_copy
from fitkit.handler.copy_weights import copy_into
from fitkit.handler.optimizer_mode import OptimizerMode
from fitkit.handler.parts import Parts
from fitkit.runtime.lazy_modules import with_values
from fitkit.runtime.module_state import make_weights_undo
from fitkit.runtime.weight_ema import WeightEMA, saved_decay


class WeightAverages:
    """The averages of model and loss: an EMA, or what the optimizer itself averages.

    Attributes:
        ema: the averaged weights of the model, if there are any.
        optimizer_mode: switches an optimizer with ``train()`` and ``eval()``; an EMA goes before
            what such an optimizer averages.
        trained_before_restore: the weights of the model and the state of its average that training
            had reached, after an interrupted run in which the model was given its best weights.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.ema: WeightEMA | None = None
        self._loss_ema: tuple[nn.Module, WeightEMA] | None = None  # the loss that it averages
        self.optimizer_mode = OptimizerMode(parts)
        self.trained_before_restore: tuple[dict[str, Any], dict[str, Any] | None] | None = None

    @property
    def _module(self) -> nn.Module:
        return self._parts.module

    @property
    def loss_module(self) -> nn.Module | None:
        """The loss, if it is a module that may have a state."""
        return self._parts.trained_modules.loss

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
            copy_into(self._module, {**extra, **weights})
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

    def averaged_by_optimizer(self) -> dict[str, Any] | None:
        """The parameters to evaluate, for those who read only weights of a checkpoint.

        ``None`` if the model has none but those that are saved.
        """
        if self.ema is not None or self.trained_before_restore is not None:
            return None
        return self.optimizer_mode.averaged_weights(self._module)

    def swapped_in(self) -> AbstractContextManager[None]:
        """Inside ``with`` model and loss have their averaged weights, if there are any."""
        if self.ema is None:
            return self.optimizer_mode.evaluating()
        return self._with_averages(self.ema)

    @contextmanager
    def _with_averages(self, ema: WeightEMA) -> Iterator[None]:
        pair = self._average_of_loss()
        with ExitStack() as swaps:
            swaps.enter_context(ema.swapped_into(self._module))
            if pair is not None:
                swaps.enter_context(pair[1].swapped_into(pair[0]))
            yield
