"""ModelWeights: the weights of a model, and their exponential moving average if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from fitkit.checkpointing.format.encoding import encode
from fitkit.core.state_placement import copy_to_host
from fitkit.core.tree import TensorMap
from fitkit.distributed.dtensor import distribute_all_like
from fitkit.distributed.parallel import Parallel
from fitkit.runtime.weight_ema import WeightEMA, saved_decay


class ModelWeights:
    """The weights of a handler's model; ``ema`` are the averaged ones, if there are any."""

    def __init__(self, module: nn.Module, parallel: Parallel) -> None:
        self._module = module
        self._parallel = parallel
        self.ema: WeightEMA | None = None

    def start_ema(self, decay: float) -> WeightEMA:
        """Average the weights from now on; an existing average goes on with this decay."""
        if self.ema is None:
            self.ema = WeightEMA(self._module, decay)
        else:
            self.ema.set_decay(decay)
        return self.ema

    def load_ema(self, state: dict[str, Any] | None) -> None:
        """Go on with the average in a checkpoint, or without one if that has none."""
        if not state:
            self.ema = None
        else:
            self.start_ema(saved_decay(state)).load_state_dict(state)

    def training(self) -> dict[str, Any]:
        """The weights that training updates, also while ``swapped_in``; live tensors."""
        if self.ema is None:
            return self._module.state_dict()
        return self.ema.trained_weights(self._module)

    def evaluated(self, tensor_map: TensorMap = copy_to_host) -> dict[str, Any]:
        """The weights for evaluation: the averaged ones if there are any; copied to the host."""
        weights = self._module.state_dict()
        if self.ema is not None:
            weights.update(self.ema.weights())
        on_local = self._parallel.on_local_tensors(tensor_map)
        encoded: dict[str, Any] = encode(weights, tensor_map=on_local)
        return encoded

    def swapped_in(self) -> AbstractContextManager[None]:
        """Inside ``with`` the model has the averaged weights, if there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped_into(self._module)

    def load(self, weights: Mapping[str, Any], *, strict: bool = True) -> None:
        """Copy ``weights`` into the model; full tensors are sharded as the model's are."""
        weights = distribute_all_like(weights, self._module.state_dict())
        self._module.load_state_dict(weights, strict=strict)

    def restore(self, weights: Mapping[str, Any]) -> None:
        """Copy ``weights`` into the model and into its average."""
        self.load(weights)
        if self.ema is not None:
            self.ema.load_weights(dict(weights))
