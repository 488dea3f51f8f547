"""A file at a glance, for programs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fitkit import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from fitkit.checkpointing.catalog.file_overview import decode_readable, last_and_best, overview
from fitkit.checkpointing.storage import safe_load

GOLDEN = Path(__file__).parents[1] / "golden"


def test_kinds(tmp_path):
    assert overview(GOLDEN / "rich.pth")["kind"] == "checkpoint"
    assert overview(GOLDEN / "weights.pth")["kind"] == "weights"
    torch.save({"model_state_dict": {"w": torch.ones(3)}, "epoch": 2}, tmp_path / "theirs.pth")
    theirs = overview(tmp_path / "theirs.pth")
    assert theirs["kind"] == "other"
    assert theirs["weights"]["w"].shape == (3,)
    assert theirs["content"]["epoch"] == 2


def test_no_tensor_has_values():
    found = overview(GOLDEN / "rich.pth")
    assert all(one.is_meta for one in found["weights"].values())
    assert found["callbacks"]["Seen"]["total"].is_meta


def test_scores():
    history = {
        "epoch": [0, 1, 2],
        "history": {
            "val_loss": [0.5, 0.2, math.nan],
            "accuracy": [0.1, 0.9, 0.9],
            "loss": [math.nan] * 3,
            "lr": [1, 1, 0.5],
            "empty": [],
        },
    }
    found = last_and_best(history)
    assert (found["val_loss"]["best"], found["val_loss"]["best_epoch"]) == (0.2, 2)
    assert math.isnan(found["val_loss"]["last"])
    assert (found["accuracy"]["best"], found["accuracy"]["best_epoch"]) == (0.9, 2)
    assert found["loss"]["best"] is found["lr"]["best"] is None
    assert "empty" not in found


def test_tagged_values():
    array = {"__fitkit__": "ndarray", "data": torch.ones(2, device="meta"), "dtype": "float32"}
    assert decode_readable(array) is array["data"]
    assert decode_readable({"__fitkit__": "class", "name": "torch.nn:Linear"}) == "torch.nn:Linear"
    assert decode_readable({"a": [{"__fitkit__": "path", "path": "x/y"}]}) == {"a": [Path("x/y")]}


def test_what_cannot_be_told_is_damage(tmp_path):
    state = safe_load.read(GOLDEN / "plain.pth")
    torch.save({**state, "optimizer_state_dict": {"param_groups": 3}}, tmp_path / "bad.pth")
    with pytest.raises(DamagedCheckpointError, match="is not valid"):
        overview(tmp_path / "bad.pth")
    torch.save({**state, "format_version": 99}, tmp_path / "newer.pth")
    with pytest.raises(CheckpointError, match="upgrade fitkit"):
        overview(tmp_path / "newer.pth")
    with pytest.raises(CheckpointNotFoundError):
        overview(tmp_path / "nothing.pth")
