"""History: every value of every epoch of a run."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fitkit.callbacks.formatting import format_logs, format_value
from fitkit.callbacks.history_plot import draw_history
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError
from fitkit.core.html import Html, curve, table
from fitkit.core.logs import Logs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_A_METRIC = ("loss", "lr")


class History(Callback):
    """The epoch logs of the whole run, those before a restart included.

    Every handler has one; ``fit`` returns it.

    Attributes:
        epoch: the epochs, from 0.
        history: for each logged name a list of floats, as long as ``epoch``; NaN where an epoch
            did not log the name.
        interrupted: whether Ctrl-C ended the last ``fit``.
    """

    order = 100
    spans_fits = True
    state_fields: ClassVar[tuple[str, ...]] = ("epoch", "history")

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.interrupted = False

    def __repr__(self) -> str:
        last = {name: values[-1] for name, values in self.history.items()}
        ended = ", interrupted" if self.interrupted else ""
        values = f": {format_logs(last)}" if last else ""
        epochs = f"{len(self.epoch)} epoch{'' if len(self.epoch) == 1 else 's'}"
        return f"<History of {epochs}{ended}{values}>"

    def _repr_html_(self) -> str:
        """A line per value for a notebook: its curve, and its first, least, greatest and last."""
        rows = []
        for name in dict.fromkeys(name.removeprefix("val_") for name in self.history):
            lines = {one: self.history[one] for one in (name, f"val_{name}") if one in self.history}
            drawn = curve(lines)
            for one, values in lines.items():
                rows.append([one, drawn, *_ends(values)])
                drawn = Html("")
        title = f"<div>{escape(repr(self).partition(':')[0].strip('<>'))}</div>"
        if not rows:
            return title
        return title + table(rows, ("value", "curve", "first", "least", "greatest", "last"))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Take the epoch's values."""
        nothing = [math.nan] * len(self.epoch)
        names = [*self.history, *(name for name in logs if name not in self.history)]
        # new containers: a snapshot that is still being written may hold the old ones
        self.history = {
            name: [*self.history.get(name, nothing), logs.get(name, math.nan)] for name in names
        }
        self.epoch = [*self.epoch, epoch]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs of a checkpoint.

        Raises:
            CheckpointError: columns are missing, or are no lists of numbers of one length.
        """
        is_whole = set(self.state_fields) <= set(state_dict)
        if is_whole and not _is_table(state_dict["epoch"], state_dict["history"]):
            raise CheckpointError(
                "the history in the checkpoint is no set of columns of numbers, one for each "
                "epoch: use another checkpoint, or pass skip_history=True to NNHandler.load."
            )
        super().load_state_dict(state_dict)

    @property
    def train_losses(self) -> list[float]:
        """The training loss of each epoch."""
        return list(self.history.get("loss", ()))

    @property
    def val_losses(self) -> list[float]:
        """The validation loss of each epoch that was validated.

        An epoch counts as validated if any ``val_`` value of it is a number, so that lists stay
        aligned with each other.
        """
        return self._validated("val_loss")

    @property
    def train_metrics_history(self) -> dict[str, list[float]]:
        """Every other training value by name, one per epoch; ``loss`` and ``lr`` are left out."""
        return {
            name: list(values)
            for name, values in self.history.items()
            if name not in NOT_A_METRIC and not name.startswith("val_")
        }

    @property
    def val_metrics_history(self) -> dict[str, list[float]]:
        """Every other validation value by its name without ``val_``, as ``val_losses``."""
        return {
            name.removeprefix("val_"): self._validated(name)
            for name in self.history
            if name.startswith("val_") and name != "val_loss"
        }

    def _validated(self, name: str) -> list[float]:
        columns = [values for key, values in self.history.items() if key.startswith("val_")]
        rows = zip(*columns, strict=True)
        counts = [any(not math.isnan(value) for value in row) for row in rows]
        return [
            value
            for value, is_validated in zip(self.history.get(name, ()), counts, strict=False)
            if is_validated
        ]

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the curves: the loss and each other value in a panel, training and validation.

        Args:
            path: also write the figure there; the suffix (``.png``, ``.svg``, ``.pdf``) decides on
                the format, the folder is made.

        Returns:
            the figure, which belongs to no window.

        Raises:
            ConfigurationError: there is nothing to draw yet, or matplotlib is not installed.
        """
        return draw_history(self.history, self.epoch, path)


def _ends(values: list[float]) -> list[str]:
    """What a line of the table says of a column."""
    finite = [value for value in values if math.isfinite(value)]
    least, greatest = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    return [format_value(value) for value in (values[0], least, greatest, values[-1])]


def _is_table(epochs: Any, columns: Any) -> bool:
    if not isinstance(epochs, list) or not isinstance(columns, dict):
        return False
    lists = [epochs, *columns.values()]
    same_length = all(isinstance(one, list) and len(one) == len(epochs) for one in lists)
    return same_length and all(type(value) in (int, float) for one in lists for value in one)
