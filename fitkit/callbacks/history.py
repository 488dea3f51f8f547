"""History: the values of every epoch of a run."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.callbacks.support.plots import plot_history
from fitkit.checkpointing.format.growing_list import GrowingList
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import CheckpointError
from fitkit.core.formatting import format_logs, format_value
from fitkit.core.html import Html, curve, table
from fitkit.core.logs import Logs
from fitkit.reporting.curve_data import is_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(BuiltinCallback):
    """Records the epoch logs of the whole run, including those before a restart.

    Every handler has one; ``fit`` returns it.

    Attributes:
        interrupted: whether Ctrl-C ended the last ``fit``.
    """

    needs_all_ranks = False
    has_fixed_state_types = True
    order = 100
    spans_fits = True
    state_fields = ("epoch", "history")

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._columns: dict[str, list[float]] = {}
        self._is_shared = False  # whether the program has the lists, and may have changed them
        self._pickles: dict[str | None, GrowingList] = {}  # of columns; ``None``: of the epochs
        self.interrupted = False

    @property
    def epoch(self) -> list[int]:
        """The epochs, from 0."""
        self._is_shared = True
        return self._epochs

    @epoch.setter
    def epoch(self, epochs: list[int]) -> None:
        self._epochs, self._is_shared = epochs, True

    @property
    def history(self) -> dict[str, list[float]]:
        """For each logged name a list, as long as ``epoch``; NaN where an epoch did not log it."""
        self._is_shared = True
        return self._columns

    @history.setter
    def history(self, columns: dict[str, list[float]]) -> None:
        self._columns, self._is_shared = columns, True

    def __repr__(self) -> str:
        last = {name: values[-1] for name, values in self._columns.items()}
        ended = ", interrupted" if self.interrupted else ""
        values = f": {format_logs(last)}" if last else ""
        epochs = f"{len(self._epochs)} epoch{'' if len(self._epochs) == 1 else 's'}"
        return f"<History of {epochs}{ended}{values}>"

    def _repr_html_(self) -> str:
        """A table for a notebook: one row per value, with its curve."""
        rows = []
        for name in dict.fromkeys(name.removeprefix("val_") for name in self._columns):
            keys = [key for key in (name, f"val_{name}") if key in self._columns]
            drawn = curve({key: self._columns[key] for key in keys})
            for key in keys:
                rows.append([key, drawn, *_summary(self._columns[key])])
                drawn = Html("")
        title = f"<div>{escape(repr(self).partition(':')[0].strip('<>'))}</div>"
        if not rows:
            return title
        return title + table(rows, ("value", "curve", "first", "least", "greatest", "last"))

    def on_train_begin(self, logs: Logs) -> None:
        """Go on in new lists: those that an earlier ``fit`` returned are its caller's."""
        self._pickles.clear()
        vars(self).update(_epochs=list(self._epochs), _columns=self._copied(), _is_shared=False)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Record the values of the epoch."""
        for name in logs:
            if name not in self._columns:
                self._columns[name] = [math.nan] * len(self._epochs)
        for name, values in self._columns.items():
            values.append(logs.get(name, math.nan))
        self._epochs.append(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Copies of ``epoch`` and ``history``."""
        return {"epoch": list(self._epochs), "history": self._copied()}

    def _copied(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self._columns.items()}

    def pickled_state(self) -> dict[str, Any]:
        """``state_dict`` to be saved, in a time that does not grow with the number of epochs.

        If the program has read the lists it may have changed them, and each number is compared.
        """
        columns = {name: self._pickled(name, values) for name, values in self._columns.items()}
        return {"epoch": self._pickled(None, self._epochs), "history": columns}

    def _pickled(self, name: str | None, values: list[Any]) -> Any:
        return self._pickles.setdefault(name, GrowingList()).pickled(values, self._is_shared)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epochs of a checkpoint.

        Raises:
            CheckpointError: columns are missing, or are not lists of numbers of one length.
        """
        has_fields = set(self.state_fields) <= set(state_dict)
        if has_fields and not is_history(state_dict["epoch"], state_dict["history"]):
            raise CheckpointError(
                "the history in the checkpoint must be columns of numbers, one number per epoch, "
                "and is not: use another checkpoint, or pass skip_history=True to NNHandler.load."
            )
        super().load_state_dict(state_dict)

    @property
    def train_losses(self) -> list[float]:
        """The training loss of each epoch."""
        return list(self._columns.get("loss", ()))

    @property
    def val_losses(self) -> list[float]:
        """The validation loss of each epoch with validation.

        These are the epochs that have any number among their ``val_`` values, so that all lists of
        validation values have one length.
        """
        return self._validated("val_loss")

    @property
    def train_metrics_history(self) -> dict[str, list[float]]:
        """Every other training value by name, one per epoch; ``loss`` and ``lr`` are left out."""
        return {
            name: list(values)
            for name, values in self._columns.items()
            if name not in ("loss", "lr") and not name.startswith("val_")
        }

    @property
    def val_metrics_history(self) -> dict[str, list[float]]:
        """Every other validation value by its name without ``val_``, as ``val_losses``."""
        return {
            name.removeprefix("val_"): self._validated(name)
            for name in self._columns
            if name.startswith("val_") and name != "val_loss"
        }

    def _validated(self, name: str) -> list[float]:
        columns = [values for key, values in self._columns.items() if key.startswith("val_")]
        rows = zip(self._columns.get(name, ()), *columns, strict=False)
        return [value for value, *row in rows if not all(map(math.isnan, row))]

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot the loss and each other value in a panel, training and validation together.

        Args:
            path: also write the figure there, in the format of the suffix (``.png``, ``.svg``,
                ``.pdf``); the folder is created.

        Returns:
            the figure, which belongs to no window.

        Raises:
            ConfigurationError: no epoch is done, or matplotlib is not installed.
        """
        return plot_history(self._columns, self._epochs, path)


def _summary(values: list[float]) -> list[str]:
    """The first, least, greatest and last value as text."""
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    return [format_value(value) for value in (values[0], min(finite), max(finite), values[-1])]
