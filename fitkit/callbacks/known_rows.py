"""KnownRows: what a tracker's run has already, and cannot take back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

_TELLING = ("batch/loss", "loss")
_SAME = 0.01  # relative: losses further apart are of two trainings, not two roundings of one


class KnownRows:
    """The values that a run was given after the checkpoint from which training goes on.

    They are trained again, and come out the same, so they need not be written again. If they do
    not, one warning says that the run holds another training.

    Args:
        rows: values by step and name.
        owner: whose run it is, as the warning begins.
    """

    def __init__(self, rows: Mapping[int, Mapping[str, float]], owner: str) -> None:
        self._rows = rows
        self._owner = owner
        self._has_warned = False

    def without(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values of a step that the run does not have."""
        known = self._rows.get(step, {})
        for name in _TELLING:
            if name in known and name in values:
                self._compare(step, name, known[name], values[name])
        return {name: value for name, value in values.items() if name not in known}

    def _compare(self, step: int, name: str, known: float, value: float) -> None:
        both_finite = math.isfinite(known) and math.isfinite(value)
        if self._has_warned or not both_finite or math.isclose(known, value, rel_tol=_SAME):
            return
        self._has_warned = True
        warnings.warn(
            f"{self._owner} already has {name!r} = {known} at step {step}, where this training has "
            f"{value}. What the run has stays; for a training that goes on differently, begin a "
            f"new run.",
            stacklevel=2,
        )
