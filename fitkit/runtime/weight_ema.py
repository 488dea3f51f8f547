"""WeightEMA: an exponential moving average of a model's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fitkit.core.errors import CheckpointError, ConfigurationError, listed
from fitkit.core.state_placement import detached_copy
from fitkit.distributed.dtensor import distribute_like, is_dtensor
from fitkit.runtime.lazy_modules import with_values
from fitkit.runtime.module_modes import all_modules

_averaging = lru_cache(maxsize=8)(get_ema_multi_avg_fn)  # the decay may follow a schedule


class WeightEMA:
    """The exponential moving average of a module's parameters and persistent buffers.

    ``average = decay * average + (1 - decay) * value`` once per optimizer step, starting from the
    first step's weights (Polyak and Juditsky 1992, doi:10.1137/0330046, in its exponential form).
    Averages of 16-bit floats are kept in 32 bits, so that small steps are not rounded away; buffers
    that are not floating (counters, masks) are copied.

    ``torch.optim.swa_utils.AveragedModel`` is not used, because it copies the whole module,
    truncates averages of counters, and averages 16-bit floats in 16 bits.

    Args:
        module: the module to average, without wrappers.
        decay: in ``(0, 1)``; 0.999 remembers about the last thousand steps.

    Raises:
        ConfigurationError: the decay is out of range.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.set_decay(decay)
        self._swapped_out: list[
            dict[str, Tensor]
        ] = []  # trained values while the average is in use
        self._num_averaged = 0
        persistent = set(module.state_dict(keep_vars=True))
        # other buffers are caches, which a module may rebuild in another shape at any time
        self._buffers = {name for name, _ in module.named_buffers() if name in persistent}
        self._average: dict[str, Tensor] = {}
        self._average_names: dict[str, str] = {}
        self._tensors: list[Tensor | None] = []  # of the module, when ``_pairs`` were made
        self._pairs: list[tuple[Tensor, Tensor]] = []  # averages and what they are averages of
        self.add_missing(module)

    def set_decay(self, decay: float) -> None:
        """Use another decay from now on; raises ``ConfigurationError`` if it is out of range."""
        require_decay(decay)
        self.decay = float(decay)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average after an optimizer step of ``module``."""
        self._pair_with(module)
        # torch's foreach functions do not take DTensors and other tensors in one call
        moving: dict[bool, tuple[list[Tensor], list[Tensor]]] = {False: ([], []), True: ([], [])}
        for average, value in self._pairs:
            if self._num_averaged and (average.is_floating_point() or average.is_complex()):
                averages, targets = moving[is_dtensor(average)]
                averages.append(average)
                targets.append(value if value.dtype is average.dtype else value.to(average.dtype))
            else:
                average.copy_(value)
        for averages, targets in moving.values():
            if averages:
                _averaging(self.decay)(averages, targets, self._num_averaged)
        self._num_averaged += 1

    def _pair_with(self, module: nn.Module) -> None:
        """Find the value of each average, if the module has other tensors than the last time."""
        tensors = _tensors_of(module)
        if len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors)):
            return
        self.add_missing(module)
        values = self._values(module)
        self._pairs = [(average, values[name]) for name, average in self._average.items()]
        # a lazy parameter becomes another one in place
        has_lazy = any(is_lazy(one) for one in tensors if one is not None)
        self._tensors = [] if has_lazy else tensors

    def weights(self) -> dict[str, Tensor]:
        """The average as a state dict of the module; tensors are not copied."""
        return {name: self._average[source] for name, source in self._average_names.items()}

    def buffers(self) -> list[Tensor]:
        """The averages of the module's buffers; tensors are not copied."""
        return [self._average[name] for name in self._average if name in self._buffers]

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Set the average; raise ``CheckpointError`` without any change if it does not fit."""
        current = self.weights()
        wrong = [
            f"{name}: expected shape {tuple(average.shape)}, found {tuple(weights[name].shape)}"
            for name, average in current.items()
            if name in weights and average.shape != weights[name].shape
        ]
        if wrong or current.keys() != weights.keys():
            raise CheckpointError(
                f"the averaged weights in the checkpoint do not fit this model: missing "
                f"{listed(current.keys() - weights.keys())}, unknown "
                f"{listed(weights.keys() - current.keys())}, of another shape "
                f"{'; '.join(sorted(wrong)) or 'none'}. Build the model as it was when they were "
                f"saved, or pass skip_ema=True to NNHandler.load."
            )
        for name, average in current.items():
            average.copy_(distribute_like(weights[name], average))

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Inside ``with``, the module has the averaged weights; the trained ones come back."""
        self.add_missing(module)
        values = self._values(module)
        self._swapped_out.append({name: detached_copy(value) for name, value in values.items()})
        try:
            _copy(self._average, values)
            yield
        finally:
            _copy(self._swapped_out.pop(), self._values(module))

    def trained_weights(self, module: nn.Module) -> dict[str, Any]:
        """The module's state dict with its trained weights, also while the average is in use."""
        weights: dict[str, Any] = module.state_dict()
        trained = self._swapped_out[0] if self._swapped_out else {}
        for name, source in self._average_names.items():  # tied weights have several names
            if source in trained:
                weights[name] = trained[source]
        return weights

    def _values(self, module: nn.Module) -> dict[str, Tensor]:
        """Parameters and persistent buffers that have values, each tensor once."""
        buffers = {name: b for name, b in module.named_buffers() if name in self._buffers}
        return with_values({**dict(module.named_parameters()), **buffers})

    def add_missing(self, module: nn.Module) -> None:
        """Begin the average of what has values since then: lazy parameters after a first batch."""
        values = self._values(module)
        missing = {name: value for name, value in values.items() if name not in self._average}
        if missing:
            self._average |= {name: _accumulator(value) for name, value in missing.items()}
            self._average_names = _average_names(module, values)

    def state_dict(self) -> dict[str, Any]:
        """The average, the number of steps in it, and the decay."""
        averaged = self._num_averaged
        return {"weights": self.weights(), "num_averaged": averaged, "decay": self.decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore an average, or raise ``CheckpointError``; the constructor's decay stays."""
        missing = {"weights", "num_averaged"} - set(state_dict)
        if missing:
            raise CheckpointError(
                f"the weight average in the checkpoint lacks {listed(missing)}: pass skip_ema=True "
                f"to NNHandler.load to go without it."
            )
        self.load_weights(state_dict["weights"])
        self._num_averaged = int(state_dict["num_averaged"])


def saved_decay(state_dict: dict[str, Any]) -> float:
    """The saved decay of an average; 0.999 if it is missing or invalid."""
    decay = float(state_dict.get("decay", 0.999))
    return decay if math.isfinite(decay) and 0.0 < decay < 1.0 else 0.999


def _average_names(module: nn.Module, values: dict[str, Tensor]) -> dict[str, str]:
    """The names of the state dict, tied ones included, with the name of the average of each."""
    names = {id(tensor): name for name, tensor in values.items()}
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {name: names[id(tensor)] for name, tensor in tensors if id(tensor) in names}


def _tensors_of(module: nn.Module) -> list[Tensor | None]:
    """Parameters and buffers, without their names, which take torch several times as long."""
    found: list[Tensor | None] = []
    for part in all_modules((module,)):
        found += part._parameters.values()  # noqa: SLF001
        found += part._buffers.values()  # noqa: SLF001
    return found


def _accumulator(tensor: Tensor) -> Tensor:
    is_short = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().to(torch.float32 if is_short else tensor.dtype, copy=True)


@torch.no_grad()
def _copy(source: dict[str, Tensor], destination: dict[str, Tensor]) -> None:
    for name, tensor in destination.items():
        tensor.copy_(source[name])


def require_decay(decay: Any) -> None:
    """Raise ``ConfigurationError`` unless ``decay`` is a number in ``(0, 1)``."""
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 < decay < 1.0:
        raise ConfigurationError(
            f"the decay of a weight average must lie in (0, 1), received {decay!r}; to turn "
            f"averaging off use ema_decay=0.0."
        )
