"""WeightAverage: an exponential moving average of a model's weights, and the swap with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fitkit.core.errors import CheckpointError, ConfigurationError, listed
from fitkit.runtime.pieces import fitted, is_piece


class WeightAverage:
    """The exponential moving average of a module's parameters and persistent buffers.

    It moves by the rule of ``torch.optim.swa_utils``; ``AveragedModel`` from there is not used
    because it copies the whole module, truncates the average of counters, and in 16 bits loses it.

    ``average = decay * average + (1 - decay) * value`` once per optimizer step, starting from the
    first step's weights (Polyak and Juditsky 1992, doi:10.1137/0330046, in its exponential form).
    Averages of 16-bit floats are kept in 32 bits, where small steps are not rounded away; buffers
    that are not floating (counters, masks) are copied.

    Args:
        module: the module to average, without wrappers.
        decay: in ``(0, 1)``; 0.999 remembers about the last thousand steps.

    Raises:
        ConfigurationError: the decay is out of range.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.set_decay(decay)
        self._own: list[dict[str, Tensor]] = []  # the module's own values while swapped out
        self._num_averaged = 0
        saved = set(module.state_dict(keep_vars=True))
        # other buffers are caches, which a module may rebuild in another shape at any time
        self._buffers = {name for name, _ in module.named_buffers() if name in saved}
        values = self._values(module)
        self._average = {name: _accumulator(value) for name, value in values.items()}
        self._names = _names_of_all(module, values)

    def set_decay(self, decay: float) -> None:
        """Average with this decay from now on.

        Raises:
            ConfigurationError: it is out of range.
        """
        require_decay(decay)
        self.decay = float(decay)
        self._move = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average by one optimizer step of ``module``."""
        values = self._values(module)
        moving: dict[bool, tuple[list[Tensor], list[Tensor]]] = {False: ([], []), True: ([], [])}
        for name, average in self._average.items():
            if self._num_averaged and _moves(average):
                averages, targets = moving[is_piece(average)]  # torch does not move both at once
                averages.append(average)
                targets.append(values[name].to(average.dtype))
            else:
                average.copy_(values[name])
        for averages, targets in moving.values():
            if averages:
                self._move(averages, targets, self._num_averaged)
        self._num_averaged += 1

    def weights(self) -> dict[str, Tensor]:
        """The averaged state dict, with the module's own names; tensors are live, not copies."""
        return {name: self._average[kept] for name, kept in self._names.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Make ``weights`` the average.

        Raises:
            CheckpointError: they do not fit the module; nothing was changed.
        """
        own = self.weights()
        wrong = [
            f"{name}: expected shape {tuple(own[name].shape)}, found {tuple(weights[name].shape)}"
            for name in own.keys() & weights.keys()
            if own[name].shape != weights[name].shape
        ]
        if wrong or own.keys() != weights.keys():
            raise CheckpointError(
                f"the averaged weights in the checkpoint do not fit this model: missing "
                f"{listed(own.keys() - weights.keys())}, unknown "
                f"{listed(weights.keys() - own.keys())}, of another shape "
                f"{'; '.join(sorted(wrong)) or 'none'}. Build the model as it was when they were "
                f"saved, or pass skip_ema=True to NNHandler.load."
            )
        for name, average in own.items():
            average.copy_(fitted(weights[name], average))

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Inside ``with`` the module has the averaged weights; its own are always put back."""
        values = self._values(module)
        self._own.append({name: value.detach().clone() for name, value in values.items()})
        try:
            _copy(self._average, values)
            yield
        finally:
            _copy(self._own.pop(), self._values(module))

    def own_weights(self, module: nn.Module) -> dict[str, Any]:
        """The module's state dict with its own weights, also while the average is swapped in."""
        weights: dict[str, Any] = module.state_dict()
        own = self._own[0] if self._own else {}
        for name, kept in self._names.items():  # tied weights have several names
            if kept in own:
                weights[name] = own[kept]
        return weights

    def _values(self, module: nn.Module) -> dict[str, Tensor]:
        """Parameters and persistent buffers, each tensor once."""
        buffers = {name: b for name, b in module.named_buffers() if name in self._buffers}
        return {**dict(module.named_parameters()), **buffers}

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights, steps averaged and decay."""
        return {
            "weights": self.weights(),
            "num_averaged": self._num_averaged,
            "decay": self.decay,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over an average; the decay stays the constructor's.

        Raises:
            CheckpointError: keys are missing, or the averaged weights do not fit the module.
        """
        missing = {"weights", "num_averaged"} - set(state_dict)
        if missing:
            raise CheckpointError(
                f"the weight average in the checkpoint lacks {listed(missing)}: pass skip_ema=True "
                f"to NNHandler.load to go without it."
            )
        self.load_weights(state_dict["weights"])
        self._num_averaged = int(state_dict["num_averaged"])


def saved_decay(state_dict: dict[str, Any]) -> float:
    """The decay that an average was saved with; 0.999 where the file does not say."""
    decay = float(state_dict.get("decay", 0.999))
    return decay if math.isfinite(decay) and 0.0 < decay < 1.0 else 0.999


def _names_of_all(module: nn.Module, values: dict[str, Tensor]) -> dict[str, str]:
    """Every name of the state dict, tied ones included, with the name its tensor is kept under."""
    kept = {id(tensor): name for name, tensor in values.items()}
    everything = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {name: kept[id(tensor)] for name, tensor in everything if id(tensor) in kept}


def _moves(average: Tensor) -> bool:
    return average.is_floating_point() or average.is_complex()


def _accumulator(tensor: Tensor) -> Tensor:
    is_short = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().to(torch.float32 if is_short else tensor.dtype, copy=True)


@torch.no_grad()
def _copy(source: dict[str, Tensor], destination: dict[str, Tensor]) -> None:
    for name, tensor in destination.items():
        tensor.copy_(source[name])


def require_decay(decay: Any) -> None:
    """Fail unless ``decay`` is a number in ``(0, 1)``.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 < decay < 1.0:
        raise ConfigurationError(
            f"the decay of a weight average must lie in (0, 1), received {decay!r}; for no "
            f"averaging use ema_decay=0.0."
        )
