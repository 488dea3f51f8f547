"""The curves of a history as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.core.errors import ConfigurationError

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
    figure_class = _figure_class()
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
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _figure_class() -> type[Any]:
    try:
        # not pyplot: no window system is needed, and no figure stays registered
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            'History.plot needs matplotlib, which is not installed: pip install "fitkit[plot]"'
        ) from error
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
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if paired and axes.lines:
        axes.legend(frameon=False)
