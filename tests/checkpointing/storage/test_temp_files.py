"""Temporary files and folders are held by who writes them, and litter when nobody does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from fitkit.checkpointing.storage import is_checkpoint, temp_files


def litter(folder):
    return [path for path in folder.iterdir() if path.name.endswith(is_checkpoint.TEMP_SUFFIX)]


def test_a_folder_is_held_until_it_is_done(tmp_path):
    with temp_files.temp_folder(tmp_path / "deep" / "er") as folder:
        (folder / "piece").write_text("x")
        temp_files.remove_stale(folder.parent)
        assert temp_files.try_lock(folder) is None
        assert (folder / "piece").exists()
    assert litter(folder.parent) == []


def test_what_was_given_another_name_stays_and_is_held_meanwhile(tmp_path):
    with temp_files.temp_folder(tmp_path) as folder:
        (folder / "piece").write_text("x")
        folder.rename(tmp_path / "kept")
        assert temp_files.try_lock(tmp_path / "kept") is None
    assert (tmp_path / "kept" / "piece").read_text() == "x"
    descriptor = temp_files.try_lock(tmp_path / "kept")
    assert descriptor is not None
    os.close(descriptor)


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with temp_files.temp_folder(tmp_path) as folder:
            (folder / "piece").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert litter(tmp_path) == []


def test_abandoned_folders_and_files_go_with_the_next_one(tmp_path):
    abandoned = temp_files.unique_path(tmp_path)
    abandoned.mkdir()
    (abandoned / "piece").write_text("x")
    temp_files.unique_path(tmp_path).write_text("x")
    with temp_files.temp_folder(tmp_path) as folder:
        assert litter(tmp_path) == [folder]


def test_names_of_others_stay(tmp_path):
    for name in (f"mine{is_checkpoint.TEMP_SUFFIX}", ".hidden", "x.pth"):
        (tmp_path / name).write_text("x")
    temp_files.remove_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_gone_cannot_be_held(tmp_path):
    assert temp_files.try_lock(tmp_path / "none") is None
    temp_files.remove_stale(tmp_path / "none")


def test_many_at_once_in_one_folder(tmp_path):
    lost = []

    def work():
        for _ in range(30):
            with temp_files.temp_folder(tmp_path) as folder:
                (folder / "piece").write_text("x")
                temp_files.remove_stale(tmp_path)
                if not (folder / "piece").exists():
                    lost.append(folder)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert litter(tmp_path) == []


# ---- file systems without locks -----------------------------------------------------------------

NO_LOCKS = {
    "ENOLCK": f"raise OSError({errno.ENOLCK}, 'no locks')",
    "ENOTSUP": f"raise OSError({errno.ENOTSUP}, 'no locks')",
    "EINVAL": f"raise OSError({errno.EINVAL}, 'no locks')",
    "always busy": f"raise BlockingIOError({errno.EWOULDBLOCK}, 'busy')",
    "locks nothing": "return None",
}
WITHOUT_LOCKS = """
import fcntl


def flock(*_):
    {}


fcntl.flock = flock
"""
# every kind of write: files, shard folders, links to both, retention, a restart
TRAINS = """
import sys
from pathlib import Path
import torch, fitkit
from fitkit.checkpointing.storage import single_or_sharded

folder = Path(sys.argv[1])


def train(epochs):
    handler = fitkit.NNHandler(torch.nn.Linear, in_features=4, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(torch.nn.MSELoss())
    saver = fitkit.ModelCheckpoint(folder / "{epoch}.pth", max_to_keep=2)
    data = torch.ones(4, 4), torch.ones(4, 2)
    handler.fit(data, epochs=epochs, callbacks=[saver], resume=folder, progress_bar=False)
    return handler.state.epoch


assert train(3) == 3
assert train(5) == 5
names = sorted(path.name for path in folder.iterdir())
assert names == ["4.pth", "5.pth"], names
sharded = folder / "sharded"
for number in range(3):
    single_or_sharded.convert(folder / "5.pth", sharded / f"{number}.pth", sharded=True)
single_or_sharded.duplicate(sharded / "0.pth", sharded / "copies" / "0.pth")
for number in range(3):
    single_or_sharded.verify(sharded / f"{number}.pth")
print(len(list(sharded.glob("*.shards"))), "shard folders", len(list(folder.rglob("*tmp"))), "left")
"""


@pytest.mark.parametrize(
    "kind", ["ENOLCK", *(pytest.param(k, marks=pytest.mark.slow) for k in [*NO_LOCKS][1:])]
)
def test_a_run_on_a_file_system_without_locks(tmp_path, kind):
    """A process of its own, in which the system call is replaced before anything is imported."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT_LOCKS.format(NO_LOCKS[kind]))
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, "-c", TRAINS, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    if kind == "always busy":
        assert "a new temporary file cannot be kept there" in found.stderr
        assert len(list((tmp_path / "run").rglob("*"))) < 20
    else:
        assert found.returncode == 0, found.stderr
        assert found.stdout == "3 shard folders 0 left\n"


def test_without_locks_a_temporary_file_is_stale_after_a_day(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    new, old = temp_files.unique_path(tmp_path), temp_files.unique_path(tmp_path)
    for path, age in ((new, 23 * 3600), (old, 25 * 3600)):
        path.write_text("x")
        os.utime(path, (time.time() - age,) * 2)
    temp_files.remove_stale(tmp_path)
    assert litter(tmp_path) == [new]
    assert temp_files.try_lock(new) is None
    descriptor = temp_files.try_lock(new, else_unlocked=True)
    assert descriptor is not None
    os.close(descriptor)


def test_without_locks_only_folders_of_the_own_run_are_orphans(tmp_path, monkeypatch):
    """Another run may just be writing the file that refers to the folder."""
    import fcntl

    from fitkit.checkpointing.storage import shard_folder
    from fitkit.checkpointing.storage.run_record import RunRecord

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    for run in "ab":
        folder = tmp_path / f"{run}{is_checkpoint.SHARDS_SUFFIX}"
        folder.mkdir()
        shard_folder.mark(folder, RunRecord(run * 32, 0, (0,)))
    shard_folder.remove_orphans(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    shard_folder.remove_orphans(tmp_path, "a" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["b.shards"]
