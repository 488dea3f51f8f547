"""Curves: the values of every epoch of a run, from a checkpoint or a log file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitkit.checkpointing.format.encoding import decode
from fitkit.core.errors import DamagedCheckpointError


@dataclass(frozen=True)
class Curves:
    """A table of numbers: a row for each epoch, a column for each logged name.

    Attributes:
        epochs: the epochs, from 0.
        columns: for each name a list as long as ``epochs``; NaN where there is no value.
    """

    epochs: Sequence[int] = ()
    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, rows: Mapping[int, Mapping[str, float]], names: Iterable[str]) -> Curves:
        """The table of values by epoch and name."""
        epochs = sorted(rows)
        columns = {name: [rows[epoch].get(name, math.nan) for epoch in epochs] for name in names}
        return cls(epochs, columns)

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Each epoch with its values."""
        for index, epoch in enumerate(self.epochs):
            yield epoch, {name: values[index] for name, values in self.columns.items()}

    def joined(self, other: Curves) -> Curves:
        """Both tables in one; where both have a value, that of this one is taken."""
        rows = dict(other.rows())
        for epoch, row in self.rows():
            values = {name: value for name, value in row.items() if not math.isnan(value)}
            rows[epoch] = {**rows.get(epoch, {}), **values}
        return Curves.from_rows(rows, dict.fromkeys([*self.columns, *other.columns]))


def read_curves(state: Mapping[str, Any], path: Path | str) -> Curves:
    """The curves that a checkpoint holds.

    Args:
        state: its content; tensors may be without values.
        path: its path, for the error.

    Raises:
        DamagedCheckpointError: its history is not a table of numbers.
    """
    history = decode(state["history"])
    epochs, columns = history.get("epoch"), history.get("history")
    if not is_history(epochs, columns) or not all(map(math.isfinite, epochs)):
        raise DamagedCheckpointError(
            f"the history in {str(path)!r} must be columns of numbers, one number per epoch, and "
            f"is not: use another checkpoint."
        )
    return Curves(
        [int(epoch) for epoch in epochs],
        {str(name): [float(value) for value in values] for name, values in columns.items()},
    )


def is_history(epochs: Any, columns: Any) -> bool:
    """Whether these are a list of numbers, and a dict of lists of numbers of the same length."""
    if not isinstance(epochs, list) or not isinstance(columns, dict):
        return False
    lists = [epochs, *columns.values()]
    same_length = all(isinstance(values, list) and len(values) == len(epochs) for values in lists)
    return same_length and all(type(value) in (int, float) for values in lists for value in values)
