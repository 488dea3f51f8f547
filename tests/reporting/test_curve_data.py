"""Curves: what a checkpoint holds, and two sources put together."""

from __future__ import annotations

import math

import pytest

from fitkit import DamagedCheckpointError
from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.reporting.curve_data import Curves, read_curves

NAN = math.nan


def test_a_checkpoint_s_history_is_taken_over_as_it_is(finished_run):
    curves = read_curves(read_metadata(finished_run / "all" / "03.pth").state, "03.pth")
    assert curves.epochs == [0, 1, 2]
    assert set(curves.columns) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"}
    assert curves.columns["lr"] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"epoch": [0], "history": {"loss": []}},
        {"epoch": [0], "history": {"loss": ["1"]}},
        {"epoch": [0], "history": {"loss": [True]}},
        {"epoch": [NAN], "history": {}},
        {"epoch": 3, "history": {}},
        {"epoch": [], "history": []},
    ],
)
def test_what_is_no_table_is_refused_by_name(history):
    with pytest.raises(DamagedCheckpointError, match=r"a\.pth"):
        read_curves({"history": history}, "a.pth")


def test_the_first_source_wins_and_the_other_fills_gaps():
    first = Curves([0, 1], {"loss": [1.0, 0.5], "val_loss": [NAN, 0.7]})
    other = Curves(
        [0, 1, 2], {"loss": [9.0, 9.0, 0.25], "val_loss": [0.9, 9.0, NAN], "x": [1, 2, 3]}
    )
    joined = first.joined(other)
    assert joined.epochs == [0, 1, 2]
    assert joined.columns["loss"] == [1.0, 0.5, 0.25]
    assert joined.columns["val_loss"][:2] == [0.9, 0.7]
    assert math.isnan(joined.columns["val_loss"][2])
    assert list(joined.rows())[2][1]["x"] == 3


def test_nothing_joined_with_something_is_that():
    something = Curves([3], {"loss": [0.5]})
    assert Curves().joined(something) == something.joined(Curves()) == something
