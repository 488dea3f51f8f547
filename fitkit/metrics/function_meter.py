"""FunctionMeter: the weighted means of what a metric function returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fitkit.metrics.entries import entries
from fitkit.metrics.weighted_mean import WeightedMean


class FunctionMeter:
    """The means, weighted by samples, of the numbers that a metric function returns.

    Attributes:
        means: by the name in the logs; a function that returns several numbers has several.

    Args:
        name: name of the metric.
        function: ``(outputs, targets) -> number``, or a mapping or vector of them.
        require_free: raises if another value is logged under a name.
    """

    STATE_KEYS: ClassVar = (WeightedMean.STATE_KEYS, frozenset({"entries"}))

    def __init__(
        self,
        name: str,
        function: Callable[[Any, Any], Any],
        require_free: Callable[[str, str], None],
    ) -> None:
        self._name = name
        self._function = function
        self._require_free = require_free
        self.means: dict[str, WeightedMean] = {}

    def reset(self) -> None:
        """Discard everything added."""
        self.means.clear()

    def measure(self, outputs: Any, targets: Any, num_samples: int) -> dict[str, Any]:
        """Add one batch; return its own values by name, floats or scalar tensors."""
        values = entries(self._name, self._function(outputs, targets))
        for name, value in values.items():
            self._mean(name).add(value, num_samples)
        return values

    def _mean(self, name: str) -> WeightedMean:
        if name not in self.means:
            self._require_free(self._name, name)
            self.means[name] = WeightedMean()
        return self.means[name]

    def state_dict(self) -> dict[str, Any]:
        """The state of the mean, or of each mean."""
        if set(self.means) <= {self._name}:
            return self.means.get(self._name, WeightedMean()).state_dict()
        return {"entries": {name: mean.state_dict() for name, mean in self.means.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the means, or raise ``CheckpointError``."""
        self.reset()
        for name, state in state_dict.get("entries", {self._name: state_dict}).items():
            self._mean(name).load_state_dict(state)
