"""Which checkpoints there are, and which are of one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fitkit import CheckpointNotFoundError
from fitkit.checkpointing.catalog.scan import RunSignature, group_runs, scan_folder
from fitkit.checkpointing.storage import safe_load

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint of some place and history."""
    original = safe_load.read(GOLDEN / "plain.pth")

    def _write(name, epoch, losses, **changes):
        progress = {**original["progress"]}
        progress["state"] = {**progress["state"], "epoch": epoch, "global_step": 4 * epoch}
        history = {"epoch": list(range(len(losses))), "history": {"loss": losses}}
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        torch.save({**original, "progress": progress, "history": history, **changes}, path)
        return path

    return _write


def names(entries):
    return [one.path.name for one in entries]


def test_kinds_and_names(write, tmp_path):
    path = write("a/1.pth", 1, [0.5])
    (tmp_path / "b").hardlink_to(path)
    (tmp_path / "weights.pt").write_bytes((GOLDEN / "weights.pth").read_bytes())
    torch.save([1], tmp_path / "list.ckpt")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:3000])
    (tmp_path / "text.txt").write_text("PK")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = {one.path.relative_to(tmp_path).as_posix(): one for one in scan_folder(tmp_path)}
    assert {name: one.kind for name, one in found.items()} == {
        "a/1.pth": "checkpoint",
        "b": "checkpoint",
        "cut.pth": "damaged",
        "list.ckpt": "other",
        "weights.pt": "weights",
    }
    assert found["b"].file_id == found["a/1.pth"].file_id
    assert found["b"].position == found["a/1.pth"].position != ()
    assert "not a whole checkpoint" in found["cut.pth"].problem


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        scan_folder(tmp_path / "nothing")


def test_runs(write, tmp_path):
    write("1.pth", 1, [0.5])
    write("2.pth", 2, [0.5, 0.4])
    write("3.pth", 3, [0.5, 0.4, 0.3])
    write("other2.pth", 2, [0.6, 0.4])
    write("other1.pth", 1, [0.6])
    write("seed.pth", 1, [0.5], seed=99)
    runs, unclear = group_runs(scan_folder(tmp_path))
    assert [names(run.files) for run in runs] == [
        ["3.pth", "2.pth", "1.pth"],
        ["other2.pth", "other1.pth"],
        ["seed.pth"],
    ]
    assert runs[0].last.path.name == "3.pth"
    assert unclear == []


def test_a_run_that_branched_off_is_another(write, tmp_path):
    write("1.pth", 1, [0.5])
    write("2.pth", 2, [0.5, 0.4])
    write("branch.pth", 3, [0.5, 0.6, 0.7])
    runs, unclear = group_runs(scan_folder(tmp_path))
    assert [names(run.files) for run in runs] == [["branch.pth"], ["2.pth"]]
    assert names(unclear) == ["1.pth"], "both began with it"


@pytest.mark.parametrize(
    ("later", "earlier", "expected"),
    [
        (("a", 2, {"l": ["1", "nan"]}), ("a", 2, {"l": ["1", "nan"]}), True),
        (("a", 2, {"l": ["1", "2"]}), ("a", 0, {}), True),
        (("a", 1, {"l": ["1"]}), ("a", 2, {"l": ["1", "2"]}), False),
        (("a", 2, {"l": ["1", "2"]}), ("b", 1, {"l": ["1"]}), False),
        (("a", 2, {"l": ["1", "2"], "new": ["nan", "3"]}), ("a", 1, {"l": ["1"]}), True),
        (("a", 2, {"l": ["1", "2"]}), ("a", 1, {"l": ["1"], "gone": ["5"]}), False),
    ],
)
def test_lineage(later, earlier, expected):
    assert RunSignature(*later).continues(RunSignature(*earlier)) is expected
