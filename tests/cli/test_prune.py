"""``fitkit prune``."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

EVERY = ["best", "epochs/01", "epochs/02", "epochs/03", "epochs/04", "steps/12", "steps/6"]


def left(folder):
    """The checkpoints that are there."""
    paths = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.pth"))
    return sorted(path.as_posix() for path in paths if path.name != "weights")


def values_of(as_json, run, name="val_loss"):
    return {
        one["name"].removesuffix(".pth"): one["scores"][name]
        for one in as_json("ls", run)
        if one["scores"]
    }


def test_a_dry_run_removes_nothing(cli, as_json, run):
    shown = cli("prune", run, "--keep-last", 2, "--dry-run").stdout
    assert shown.count("would remove") == 4 + 1
    assert left(run) == EVERY
    found = as_json("prune", run, "--keep-last", 2, "--dry-run")
    gone = [run / f"{name}.pth" for name in ("epochs/01", "steps/6", "epochs/02", "steps/12")]
    assert found["removed"] == [str(path) for path in gone]
    assert found["freed_bytes"] == sum(path.stat().st_size for path in gone)


def test_the_last_by_place(cli, run):
    os.utime(run / "epochs" / "01.pth", (2_000_000_000, 2_000_000_000))
    shown = cli("prune", run, "--keep-last", 3).stdout
    assert "left alone" in shown, "weights alone have no place"
    assert left(run) == ["best", "epochs/03", "epochs/04", "steps/12"]
    assert (run / "weights.pth").exists()
    assert "removed 0 files (0 B)" in cli("prune", run, "--keep-last", 3).stdout


@pytest.mark.parametrize("options", [["--mode", "max"], []])
def test_the_best_by_value(cli, as_json, run, options):
    """Losses fall, so by ``max`` the first epoch is best; mid-epoch files carry a stale value."""
    values = values_of(as_json, run)
    assert values["epochs/01"] > values["epochs/02"] > values["epochs/03"] > values["epochs/04"]
    cli("prune", run, "--keep-best", 2, "--monitor", "val_loss", *options)
    best = ["epochs/01", "epochs/02"] if options else ["epochs/03"]
    assert left(run) == ["best", *best, "epochs/04"], "the newest stays as well"


def test_every_second_epoch(cli, run):
    cli("prune", run, "--keep-every", 2)
    assert left(run) == ["best", "epochs/02", "epochs/04"]


def test_rules_combine(cli, run):
    cli("prune", run, "--keep-every", 3, "--keep-last", 1, "--keep-best", 1, "--monitor", "loss")
    assert left(run) == ["best", "epochs/03", "epochs/04"]


def test_a_saver_s_best_stays(cli, run):
    """As after an epoch that was worse: the newest file calls an earlier one its best."""
    state = torch.load(run / "epochs" / "04.pth", weights_only=True)
    for entry in state["callback_states"].values():
        if entry["state"].get("best_path"):
            earlier = torch.load(run / "epochs" / "02.pth", weights_only=True)
            saved = earlier["callback_states"]["ModelCheckpoint_2"]["state"]
            entry["state"]["best"] = saved["best"]
    os.remove(run / "best.pth")
    os.remove(run / "epochs" / "04.pth")
    torch.save(state, run / "epochs" / "04.pth")
    shutil.copy(run / "epochs" / "02.pth", run / "best.pth")
    cli("prune", run, "--keep-last", 1)
    assert left(run) == ["best", "epochs/04"]


def test_damaged_files_neither_go_nor_count(cli, run, damage):
    damage(run / "epochs" / "04.pth")
    damage(run / "best.pth")
    damage(run / "epochs" / "01.pth")
    shown = cli("prune", run, "--keep-last", 1).stdout
    assert shown.count(": damaged") == 3
    assert left(run) == ["best", "epochs/01", "epochs/03", "epochs/04"]


def test_files_of_others_stay(cli, run):
    torch.save({"epoch": 1}, run / "other.pth")
    (run / "notes.pth").write_text("mine")
    (run / "data.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    cli("prune", run, "--keep-last", 1)
    assert left(run) == ["best", "epochs/04", "notes", "other"]
    assert (run / "data.npz").exists()


def test_each_run_by_itself(cli, run, make_run, tmp_path):
    make_run(tmp_path / "short", lr=0.2, epochs=2)
    cli("prune", tmp_path, "--keep-last", 1)
    assert left(run) == ["best", "epochs/04"]
    assert left(tmp_path / "short") == ["best", "epochs/02"]


def test_a_file_that_fits_several_runs_stays(cli, run, make_run, tmp_path):
    """Before the end of an epoch nothing tells two runs of one seed apart."""
    make_run(tmp_path / "short", lr=0.2, epochs=2)
    state = torch.load(run / "steps" / "6.pth", weights_only=True)
    state["history"] = {"epoch": [], "history": {}}
    torch.save(state, run / "steps" / "6.pth")
    assert "fits more than one run" in cli("prune", tmp_path, "--keep-last", 1).stdout
    assert left(run) == ["best", "epochs/04", "steps/6"]


def test_what_is_freed_counts_files_and_not_names(as_json, run):
    (run / "also.pth").hardlink_to(run / "epochs" / "01.pth")
    size = (run / "epochs" / "01.pth").stat().st_size
    os.link(run / "epochs" / "02.pth", run.parent / "kept_elsewhere.pth")
    for name in ("steps/12", "steps/6", "epochs/03"):
        os.remove(run / f"{name}.pth")
    found = as_json("prune", run, "--keep-last", 1)
    assert len(found["removed"]) == 3
    assert found["freed_bytes"] == size
    assert (run.parent / "kept_elsewhere.pth").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "Pass what to keep"),
        (["--keep-last", 0], "x>=1"),
        (["--keep-best", 1], "name a monitor"),
        (["--keep-best", 1, "--monitor", "val_los", "--mode", "min"], "Did you mean 'val_loss'"),
        (["--keep-best", 1, "--monitor", "strange"], "mode='min' or mode='max'"),
    ],
)
def test_rules_that_cannot_be_used(cli, run, options, text):
    assert text in cli("prune", run, *options, code=2).stderr
    assert left(run) == EVERY


def test_what_cannot_be_removed_is_told(cli, run, monkeypatch):
    monkeypatch.setattr(
        "fitkit.checkpointing.storage.atomic_write.remove", lambda path: f"{path} stays."
    )
    assert "01.pth stays." in cli("prune", run, "--keep-last", 1, code=3).stderr
