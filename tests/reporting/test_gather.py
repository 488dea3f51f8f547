"""All that a page shows, gathered from a folder and from a run under way."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from fitkit import CheckpointNotFoundError
from fitkit.reporting.gather import gather_folder
from fitkit.reporting.page import render


def rows(data):
    return {row["name"]: row for row in data["checkpoints"]}


def lane(data, label):
    return next(one["marks"] for one in data["lanes"] if one["label"] == label)


def test_a_folder_tells_the_whole_run(finished_run):
    data = gather_folder(finished_run)
    epochs = data["progress"]["epoch"]
    assert data["title"] == "run"
    assert data["epochs"] == list(range(1, epochs + 1))
    assert data["status"]["text"].startswith("EarlyStopping")
    assert data["notes"] == []
    assert rows(data)[f"all/{epochs:02d}.pth"]["marks"][0] == "last"
    assert rows(data)["best.pth"]["marks"][0] == "best"
    assert {row["condition"] for row in data["checkpoints"]} == {"valid"}
    assert sum("newest" in row["marks"] for row in data["checkpoints"]) == 1
    assert lane(data, "EarlyStopping")[-1]["kind"] == "stop"
    assert len(lane(data, "Learning rate")) == epochs // 3
    assert {mark["epoch"] for mark in lane(data, "Checkpoints")} == set(data["epochs"])
    names = [best["name"] for best in data["best"]]
    assert names == ["lowest loss", "lowest val_loss", "highest val_accuracy"]


def test_logs_tell_what_no_checkpoint_holds(run_folder):
    before = gather_folder(run_folder)
    for path in [*run_folder.rglob("*.pth")]:
        if path.name not in ("01.pth", "02.pth"):
            path.unlink()
    data = gather_folder(run_folder)
    assert data["epochs"] == before["epochs"]
    assert data["columns"] == before["columns"]
    assert data["progress"]["epoch"] == 2
    assert data["notes"] == [
        f"epochs 3-{len(before['epochs'])} are from log.csv; no checkpoint here holds them"
    ]


def test_logs_alone_make_a_page(run_folder):
    shutil.rmtree(run_folder / "all")
    (run_folder / "best.pth").unlink()
    data = gather_folder(run_folder)
    assert data["sections"] == data["weights"] == data["checkpoints"] == []
    assert data["notes"] == ["the curves are from log.csv; no checkpoint here holds them"]
    assert "<svg" not in render(data)


def test_what_is_damaged_is_told(run_folder):
    (run_folder / "cut.pth").write_bytes((run_folder / "best.pth").read_bytes()[:900])
    row = rows(gather_folder(run_folder))["cut.pth"]
    assert row["condition"] == "damaged"
    assert "truncated" in row["problem"]
    assert row["epoch"] is None
    assert rows(gather_folder(run_folder, verify=False))["best.pth"]["condition"] == "not verified"


def test_an_empty_folder_is_an_error_that_says_so(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint that can be used"):
        gather_folder(tmp_path)
    (tmp_path / "a.pth").write_text("x")
    with pytest.raises(CheckpointNotFoundError, match=r"a\.pth"):
        gather_folder(tmp_path)


def test_all_of_it_is_json_but_for_numbers_that_are_not_finite(finished_run):
    data = gather_folder(finished_run)
    assert json.loads(json.dumps(data)) == data
    assert all(math.isfinite(v) for values in data["columns"].values() for v in values)
