"""Which checkpoints there are, and which are of one run."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch

from fitkit import CheckpointNotFoundError
from fitkit.checkpointing.catalog import scan
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


def test_files_that_are_deleted_or_replaced_meanwhile(write, tmp_path):
    for number in range(4):
        write(f"{number}.pth", number, [0.5] * number)
    (tmp_path / "link.pth").symlink_to(tmp_path / "3.pth")

    def interfere(paths):
        assert [path.name for path in paths] == ["0.pth", "1.pth", "2.pth", "3.pth", "link.pth"]
        paths[0].unlink()
        yield from paths[:2]
        paths[2].unlink()
        paths[2].write_bytes(b"no archive")
        paths[3].unlink()
        yield from paths[2:]

    found = scan_folder(tmp_path, show_progress=interfere)
    kinds = {file.path.name: file.kind for file in found}
    assert kinds == {"1.pth": "checkpoint", "2.pth": "damaged"}


def test_a_file_that_is_deleted_while_it_is_read(write, tmp_path, monkeypatch):
    path = write("a.pth", 1, [0.5])
    real = scan.read_outline

    def read(path):
        path.unlink()
        return real(path)

    monkeypatch.setattr(scan, "read_outline", read)
    assert scan_folder(tmp_path) == []
    assert not path.exists()


def test_a_file_that_may_not_be_read(write, tmp_path, monkeypatch):
    path = write("a.pth", 1, [0.5])
    path.chmod(0)
    own = Path.open

    def refuse(self, *args, **options):  # as for everybody but root
        if self.name == path.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return own(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    (found,) = scan_folder(tmp_path)
    assert (found.kind, "denied" in found.problem) == ("damaged", True)


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


def test_histories_are_compared_bit_by_bit(write, tmp_path):
    """Also with NaN, and where integers stand among floats."""
    write("1.pth", 1, [math.nan])
    write("2.pth", 2, [math.nan, 1])
    write("3.pth", 3, [math.nan, 1, 0.0])
    write("other.pth", 4, [math.nan, 1, -0.0, 2.0])
    runs, _ = group_runs(scan_folder(tmp_path))
    assert [names(run.files) for run in runs] == [["other.pth"], ["3.pth"]]


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
