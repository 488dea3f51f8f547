"""LoggedSteps: the values that a tracker's run already holds after the checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

_COMPARED = ("batch/loss", "loss")
_RELATIVE_TOLERANCE = 0.01  # losses further apart are no rounding: another training computed them


class LoggedSteps:
    """The values that a run received after the checkpoint from which training resumes.

    A tracker cannot delete values. Training computes them again and gets the same ones, so they
    are not written twice; if it gets others, one warning says so.

    Args:
        values: values by step and name.
        owner: the run, as the warning names it.
    """

    def __init__(self, values: Mapping[int, Mapping[str, float]], owner: str) -> None:
        self._values = values
        self._owner = owner
        self._has_warned = False

    def new_values(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values of a step that the run does not have."""
        logged = self._values.get(step, {})
        for name in _COMPARED:
            if name in logged and name in values:
                self._compare(step, name, logged[name], values[name])
        return {name: value for name, value in values.items() if name not in logged}

    def _compare(self, step: int, name: str, logged: float, value: float) -> None:
        both_finite = math.isfinite(logged) and math.isfinite(value)
        is_close = math.isclose(logged, value, rel_tol=_RELATIVE_TOLERANCE)
        if self._has_warned or not both_finite or is_close:
            return
        self._has_warned = True
        warnings.warn(
            f"{self._owner} already has {name!r} = {logged} at step {step}, but this training has "
            f"{value}. The logged values stay. If training is meant to differ, start a new run.",
            stacklevel=2,
        )
