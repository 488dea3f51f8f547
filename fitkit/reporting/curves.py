"""Curves: the values of every epoch of a run, out of a checkpoint and the logs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitkit.checkpointing.plain import from_plain
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

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Each epoch with its values."""
        for index, epoch in enumerate(self.epochs):
            yield epoch, {name: values[index] for name, values in self.columns.items()}

    def joined(self, other: Curves) -> Curves:
        """With the epochs and the names that only ``other`` has; where both have a value, ours."""
        rows = dict(other.rows())
        for epoch, own in self.rows():
            known = {name: value for name, value in own.items() if not math.isnan(value)}
            rows[epoch] = {**rows.get(epoch, {}), **known}
        names = dict.fromkeys([*self.columns, *other.columns])
        epochs = sorted(rows)
        columns = {name: [rows[epoch].get(name, math.nan) for epoch in epochs] for name in names}
        return Curves(epochs, columns)


def curves_of(state: Mapping[str, Any], path: Path | str) -> Curves:
    """The curves that a checkpoint holds.

    Args:
        state: its content; tensors may be without values.
        path: where it was read, for the error.

    Raises:
        DamagedCheckpointError: its history is no table of numbers.
    """
    history = from_plain(state["history"])
    epochs, columns = history.get("epoch"), history.get("history")
    if not isinstance(epochs, list) or not isinstance(columns, dict) or not _fit(epochs, columns):
        raise DamagedCheckpointError(
            f"the history in {str(path)!r} is no set of columns of numbers, one for each epoch: "
            f"use another checkpoint."
        )
    return Curves(
        [int(epoch) for epoch in epochs],
        {str(name): [float(value) for value in values] for name, values in columns.items()},
    )


def _fit(epochs: list[Any], columns: dict[Any, Any]) -> bool:
    lists = [epochs, *columns.values()]
    same_length = all(isinstance(one, list) and len(one) == len(epochs) for one in lists)
    return (
        same_length
        and all(type(value) in (int, float) for one in lists for value in one)
        and all(math.isfinite(epoch) for epoch in epochs)
    )
