"""The curves of a history as a figure."""

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
_MARKED_UP_TO = 30  # points; more of them would hide the line


def draw_history(
    history: Mapping[str, Sequence[float]], epochs: Sequence[int], path: str | Path | None
) -> Figure:
    """One panel per name, a line each for training and validation; see ``History.plot``.

    Raises:
        ConfigurationError: the history is empty, or matplotlib is not installed.
    """
    figure_class = _figure_class("History.plot")
    if not epochs:
        raise ConfigurationError(
            "the history holds no epoch yet, so there is nothing to plot: call fit first."
        )
    panels = _panels(history)
    columns = min(len(panels), _PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    width, height = _PANEL_INCHES
    figure: Figure = figure_class(figsize=(width * columns, height * rows), layout="constrained")
    for position, name in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, position), name, history, epochs)
    _write(figure, path)
    return figure


def draw_sweep(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    path: str | Path | None,
) -> Figure:
    """Losses over learning rates; see ``LearningRateSweep.plot``.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    figure: Figure = _figure_class("LearningRateSweep.plot")(
        figsize=_PANEL_INCHES, layout="constrained"
    )
    axes: Any = figure.add_subplot()
    axes.plot(lrs, losses, color="C0", alpha=0.3, label="each batch")
    axes.plot(lrs, smoothed, color="C0", label="running mean")
    if suggestion is not None:
        axes.axvline(suggestion, color="C1", linestyle="--", label=f"suggestion {suggestion:.2e}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_title("loss")
    _tidy(axes)
    axes.legend(frameon=False)
    _write(figure, path)
    return figure


def _write(figure: Figure, path: str | Path | None) -> None:
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure_class(who: str) -> type[Any]:
    try:
        # not pyplot: no window system is needed, and no figure stays registered
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package(who, "matplotlib") from error
    return Figure


def _panels(history: Mapping[str, Sequence[float]]) -> list[str]:
    """Names without ``val_``, the loss first and the learning rate last."""
    names = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    return sorted(names, key=lambda name: (name != "loss", name == "lr"))


def _draw_panel(
    axes: Any, name: str, history: Mapping[str, Sequence[float]], epochs: Sequence[int]
) -> None:
    from matplotlib.ticker import MaxNLocator

    paired = f"val_{name}" in history
    for key, label, color in ((name, "training", "C0"), (f"val_{name}", "validation", "C1")):
        points = [
            (epoch + 1, value)
            for epoch, value in zip(epochs, history.get(key, ()), strict=False)
            if math.isfinite(value)
        ]
        if points:
            marker = "o" if len(points) <= _MARKED_UP_TO else ""
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, ms=3.5)
    axes.set_title(name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes)
    if paired and axes.lines:
        axes.legend(frameon=False)
