import builtins
import math
import sys

import pytest

from fitkit.callbacks.support.plots import plot_history
from fitkit.core.errors import ConfigurationError

HISTORY = {
    "accuracy": [0.5, 0.6, 0.7],
    "loss": [1.0, 0.5, 0.25],
    "lr": [0.1, 0.1, 0.01],
    "val_loss": [math.nan, 0.75, math.nan],
    "val_accuracy": [math.nan, 0.55, math.inf],
}


@pytest.fixture(autouse=True)
def _needs_matplotlib():
    pytest.importorskip("matplotlib")


def lines(axes):
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


def test_a_panel_each_with_training_and_validation():
    figure = plot_history(HISTORY, [0, 1, 2], None)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy", "lr"]
    loss, accuracy, rate = map(lines, figure.axes)
    assert loss == {"training": [(1, 1.0), (2, 0.5), (3, 0.25)], "validation": [(2, 0.75)]}
    assert accuracy["validation"] == [(2, 0.55)]
    assert list(rate) == ["training"]
    assert [axes.get_legend() is not None for axes in figure.axes] == [True, True, False]


def test_no_window_and_no_registered_figure():
    pyplot = sys.modules.get("matplotlib.pyplot")
    plot_history(HISTORY, [0, 1, 2], None)
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_suffix_decides_on_the_format(tmp_path, suffix):
    path = tmp_path / f"curves.{suffix}"
    plot_history(HISTORY, [0, 1, 2], str(path))
    assert path.stat().st_size > 0


def test_nothing_but_nan_is_an_empty_panel():
    figure = plot_history({"loss": [math.nan], "val_loss": [math.nan]}, [0], None)
    assert not figure.axes[0].lines


def test_nothing_to_plot():
    with pytest.raises(ConfigurationError, match="call fit first"):
        plot_history({}, [], None)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    really_import = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ConfigurationError, match="pip install matplotlib"):
        plot_history(HISTORY, [0, 1, 2], None)
