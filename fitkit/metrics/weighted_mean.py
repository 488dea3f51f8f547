"""WeightedMean: the mean of values weighted by samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.metrics.running_sum import RunningSum, invalid_sums, is_real, weighted_sum


class WeightedMean:
    """The mean of values weighted by samples, summed in float64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._values = RunningSum(weighted_sum, at_once=False)
        self._weight = 0

    def add(self, value: Any, weight: int) -> None:
        """Add one value (a number or a scalar tensor) with its weight in samples."""
        self._weight += weight
        self._values.add(value, weight)

    def sums(self) -> tuple[Tensor, int]:
        """The weighted sum (float64 scalar) and the weight."""
        total = self._values.total()
        return (torch.zeros((), dtype=torch.float64) if total is None else total), self._weight

    def packed(self) -> tuple[Tensor, list[float]]:
        """The terms of a sum over ranks: a float64 vector, and numbers that the host knows."""
        total, weight = self.sums()
        return total.reshape(1), [weight]

    def state_dict(self) -> dict[str, Any]:
        """The sum, and the values that are not added yet."""
        weights = self._values.weights
        return {
            "total": self._values.added(),
            "weight": self._weight - sum(weights),
            "waiting": self._values.waiting(),
            "weights": weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sum, or raise ``CheckpointError``."""
        total, waiting = state_dict["total"], state_dict["waiting"]
        weights = [state_dict["weight"], *state_dict["weights"]]
        fits = all(type(weight) is int for weight in weights)
        fits = fits and (total is None or is_real(total, ndim=0))
        fits = fits and (waiting is None or is_real(waiting, ndim=1))
        if not fits or len(weights) - 1 != (0 if waiting is None else len(waiting)):
            raise invalid_sums("sums of the epoch")
        self._values.load(total, waiting, weights[1:])
        self._weight = sum(weights)
