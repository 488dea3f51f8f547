"""WeightedMean: the mean of values that have weights, such as samples or tokens."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import DataError, describe
from fitkit.core.state_placement import is_on_host
from fitkit.metrics.running_sum import RunningSum, invalid_sums, is_real, weighted_sum

Weight = int | float | Tensor


class WeightedMean:
    """The weighted mean of values, summed in float64.

    A weight is a number of at least 0 or a scalar tensor; one on a device is not read, so a
    negative one there makes the mean NaN. A value of weight 0 counts nothing, whatever it is.
    """

    STATE_KEYS: ClassVar = frozenset({"total", "weight", "waiting", "weights"})

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._values = RunningSum(weighted_sum, at_once=False)
        self._pairs: RunningSum | None = None  # values and weights of which the device has both
        self._weight: float = 0
        self._folded_weight: float = 0
        self._num_batches = 0

    def add(self, value: Any, weight: Weight) -> None:
        """Add one value (a number or a scalar tensor).

        Raises:
            DataError: the weight is negative, not finite, or not one number.
        """
        self._num_batches += 1
        if type(weight) is not int:
            weight = _as_weight(weight)
        if isinstance(weight, Tensor):
            if self._pairs is None:
                self._pairs = RunningSum(_sum_pairs, at_once=False)
            self._pairs.add(_pair(value, weight))
        elif weight > 0:
            self._weight += weight
            self._values.add(value, weight)
            if not self._values.num_waiting:
                self._folded_weight = self._weight
        elif weight:
            raise _invalid_weight(weight)

    def sums(self) -> tuple[Tensor, Weight]:
        """The weighted sum (float64 scalar) and the weight."""
        total = self._values.total()
        if self._pairs is None:
            zero = torch.zeros((), dtype=torch.float64)
            return (zero if total is None else total), self._weight
        pair: Any = self._pairs.total()
        return (pair[0] if total is None else pair[0] + total.to(pair.device)), (
            pair[1] + self._weight
        )

    def packed(self) -> tuple[Tensor, list[float]]:
        """The terms of a sum over ranks: a float64 vector, and numbers that the host knows."""
        total, weight = self.sums()
        if isinstance(weight, Tensor):
            return torch.stack([total, weight]), [self._num_batches]
        return total.reshape(1), [weight, self._num_batches]

    @staticmethod
    def value_of(packed: Tensor) -> float | None:
        """The mean; NaN if all weights are 0, ``None`` if nothing was added."""
        total, weight, num_batches = packed.unbind()
        return float(total / weight) if num_batches else None

    def state_dict(self) -> dict[str, Any]:
        """The sum, and the values that are not added yet."""
        state = {
            "total": self._values.added(),
            "weight": self._folded_weight,
            "waiting": self._values.waiting(),
            "weights": self._values.weights,
            "num_batches": self._num_batches,
        }
        if self._pairs is not None:
            state["pairs"] = {"total": self._pairs.added(), "waiting": self._pairs.waiting()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sum, or raise ``CheckpointError``."""
        total, waiting = state_dict["total"], state_dict["waiting"]
        weights = [state_dict["weight"], *state_dict["weights"]]
        # files of fitkit 0.2 have no number of batches; 1 says that there were some
        num_batches = state_dict.get("num_batches", int(any(weights)))
        fits = type(num_batches) is int and all(map(_is_valid, weights))
        fits = fits and (total is None or is_real(total, ndim=0))
        fits = fits and (waiting is None or is_real(waiting, ndim=1))
        if not fits or len(weights) - 1 != (0 if waiting is None else len(waiting)):
            raise invalid_sums("sums of the epoch")
        self.reset()
        self._values.load(total, waiting, weights[1:])
        self._folded_weight, self._weight = weights[0], sum(weights)
        self._num_batches = num_batches
        if "pairs" in state_dict:
            self._pairs = _load_pairs(**state_dict["pairs"])


def _as_weight(weight: Any) -> Weight:
    """``weight`` as a finite number, or as a detached scalar tensor on a device."""
    if isinstance(weight, Tensor) and weight.numel() == 1 and not weight.is_complex():
        if not is_on_host(weight):
            return weight.detach().reshape(())
        weight = weight.item()
    try:
        if isinstance(weight, (str, bytes)):
            raise TypeError
        number = float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _invalid_weight(describe(weight)) from error
    if not math.isfinite(number):
        raise _invalid_weight(number)
    return int(number) if number.is_integer() else number


def _is_valid(weight: Any) -> bool:
    return type(weight) in (int, float) and 0 <= weight < math.inf


def _invalid_weight(received: Any) -> DataError:
    return DataError(
        f"the weight of a batch must be one finite number of at least 0, received {received}: "
        f"return what the mean of its loss is over, for instance the number of tokens."
    )


def weighted_sums(value: Any, weight: Weight) -> Tensor:
    """``value`` times ``weight``, and ``weight``, as a vector on the device of the value."""
    if not isinstance(weight, Tensor):
        device = value.device if isinstance(value, Tensor) else None
        weight = torch.full(
            (),
            float(weight),
            dtype=torch.float64 if device is None else accumulation_dtype(device),
            device=device,
        )
    return _sum_pairs(_pair(value, weight).unsqueeze(0), [])


def _pair(value: Any, weight: Tensor) -> Tensor:
    dtype = accumulation_dtype(weight.device)
    if not isinstance(value, Tensor):
        value = torch.full((), float(value), dtype=dtype, device=weight.device)
    return torch.stack([value.to(dtype).to(weight.device), weight.to(dtype)])


def _sum_pairs(pairs: Tensor, _: list[float]) -> Tensor:
    """The sum of values times weights, and of weights, of float64 rows ``(value, weight)``."""
    values, weights = pairs.unbind(1)
    terms = (values * weights).masked_fill(weights == 0, 0.0).masked_fill(weights < 0, math.nan)
    return torch.stack([terms.sum(), weights.sum()])


def _load_pairs(total: Any, waiting: Any) -> RunningSum:
    fits = total is None or (is_real(total, ndim=1) and len(total) == 2)
    fits = fits and (waiting is None or (is_real(waiting, ndim=2) and waiting.shape[1] == 2))
    if not fits:
        raise invalid_sums("sums of the epoch")
    pairs = RunningSum(_sum_pairs, at_once=False)
    pairs.load(total, waiting)
    return pairs
