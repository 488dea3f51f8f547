"""ModelWeights: the weights of model and loss, and their averages if there are any."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from fitkit.checkpointing.format.encoding import encode
from fitkit.checkpointing.read_weights import check_weights
from fitkit.core.state_placement import copy_to_host, detached_copy
from fitkit.core.tree import TensorMap, map_tensors
from fitkit.distributed.parallel import Parallel
from fitkit.handler.copy_weights import copy_into
from fitkit.handler.parts import Parts
from fitkit.handler.weight_averages import WeightAverages
from fitkit.runtime.lazy_modules import require_values

_LOSS_REMEDY = "Set the loss as it was when they were saved."


class ModelWeights(WeightAverages):
    """The weights of a handler's model and of its loss module."""

    def __init__(self, parts: Parts, parallel: Parallel) -> None:
        super().__init__(parts)
        self._parallel = parallel

    # ---- the model ------------------------------------------------------------------------------

    def training(self) -> dict[str, Any]:
        """The weights that training updates, also while ``swapped_in``; live tensors."""
        if self.trained_before_restore is not None:
            return self.trained_before_restore[0]
        if self.ema is None:
            return self.optimizer_mode.trained_weights(self._module)
        return self.ema.trained_weights(self._module)

    def evaluated(self, tensor_map: TensorMap = copy_to_host) -> dict[str, Any]:
        """The weights for evaluation: the averaged ones if there are any; copied to the host."""
        require_values(self._module)
        with self.swapped_in() if self.ema is None else nullcontext():
            weights = self._module.state_dict()
            if self.ema is not None:
                weights.update(self.ema.weights())
            elif self.optimizer_mode.switches:  # parameters are the average only here
                weights.update(map_tensors(detached_copy, dict(weights)))
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
        copy_into(self._module, weights, strict=strict, check=check)
        self.trained_before_restore = None

    def restore(self, weights: Mapping[str, Any], *, keep_trained: bool = False) -> None:
        """Copy ``weights`` into the model and into its average.

        With ``keep_trained`` checkpoints hold the replaced weights until training begins again.
        """
        trained = self.trained_before_restore
        if keep_trained and trained is None:
            copied = map_tensors(detached_copy, (self.training(), self.ema_state()))
            trained = (copied[0], copied[1])
        if self.ema is None:
            self.optimizer_mode.stay_evaluating(weights_are_trained=not keep_trained)
        self.load(weights)
        if self.ema is not None:
            self.ema.load_weights(dict(weights))
        self.trained_before_restore = trained if keep_trained else None

    # ---- the loss -------------------------------------------------------------------------------

    def loss_state(self) -> dict[str, Any] | None:
        """The loss module's own weights that training updates; ``None`` if it has none."""
        loss, pair = self.loss_module, self._average_of_loss()
        if loss is None:
            return None
        average = self.optimizer_mode if pair is None else pair[1]
        weights = average.trained_weights(loss)
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
            copy_into(loss, self._whole_loss(loss, weights), remedy=_LOSS_REMEDY)

    def _whole_loss(self, loss: nn.Module, weights: Mapping[str, Any]) -> Any:
        """``weights`` with those that the loss shares with the model, which are not saved twice."""
        shared = self._parts.trained_modules.shared_with_model()
        of_model = {name: value for name, value in loss.state_dict().items() if name in shared}
        whole: Any = copy.copy(weights)  # keeps the _metadata of a module's state dict
        whole.update(of_model)
        return whole
