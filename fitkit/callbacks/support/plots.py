"""Figures of a history and of a learning rate sweep, drawn with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.core.errors import ConfigurationError, missing_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_INCHES = (4.8, 3.2)
_PANELS_PER_ROW = 3
_MOST_MARKERS = 30  # more of them would hide the line


def plot_history(
    history: Mapping[str, Sequence[float]], epochs: Sequence[int], path: str | Path | None
) -> Figure:
    """One panel per name with a line each for training and validation; see ``History.plot``."""
    if not epochs:
        raise ConfigurationError(
            "the history holds no epoch yet, so there is nothing to plot: call fit first."
        )
    # the loss first, the learning rate last
    names = dict.fromkeys(name.removeprefix("val_") for name in history)
    panels = sorted(names, key=lambda name: (name != "loss", name == "lr"))
    columns = min(len(panels), _PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    figure = _new_figure("History.plot", columns, rows)
    for position, name in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, position), name, history, epochs)
    return _saved(figure, path)


def plot_lr_sweep(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    path: str | Path | None,
) -> Figure:
    """Losses over learning rates; see ``LearningRateSweep.plot``."""
    figure = _new_figure("LearningRateSweep.plot")
    axes: Any = figure.add_subplot()
    axes.plot(lrs, losses, color="C0", alpha=0.3, label="each batch")
    axes.plot(lrs, smoothed, color="C0", label="running mean")
    if suggestion is not None:
        axes.axvline(suggestion, color="C1", linestyle="--", label=f"suggestion {suggestion:.2e}")
    axes.set_xscale("log")
    _finish(axes, "loss", "learning rate")
    axes.legend(frameon=False)
    return _saved(figure, path)


def _new_figure(user: str, columns: int = 1, rows: int = 1) -> Figure:
    try:
        # not pyplot: no window system is needed, and no figure stays registered
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package(user, "matplotlib") from error
    width, height = _PANEL_INCHES
    return Figure(figsize=(width * columns, height * rows), layout="constrained")


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _finish(axes: Any, title: str, x_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(
    axes: Any, name: str, history: Mapping[str, Sequence[float]], epochs: Sequence[int]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for key, label, color in ((name, "training", "C0"), (f"val_{name}", "validation", "C1")):
        points = [
            (epoch + 1, value)
            for epoch, value in zip(epochs, history.get(key, ()), strict=False)
            if math.isfinite(value)
        ]
        if points:
            marker = "o" if len(points) <= _MOST_MARKERS else ""
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, ms=3.5)
    _finish(axes, name, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if f"val_{name}" in history and axes.lines:
        axes.legend(frameon=False)
