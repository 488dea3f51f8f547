from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fitkit import SaveError
from fitkit.checkpointing.storage import (
    atomic_write,
    is_checkpoint,
    safe_load,
    temp_files,
    torch_archive,
)


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(is_checkpoint.TEMP_SUFFIX)]


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """What a full disk looks like to whoever writes more than this to one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path):
    """A folder with one checkpoint, mounted read-only: root ignores modes."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    atomic_write.write({"a": 1}, folder / "old.pth")
    if subprocess.run(
        ["mount", "--bind", str(folder), str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting takes root")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# ---- writing ------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    content = {"w": torch.arange(6.0).reshape(2, 3), "n": [1, 2.5, "three", None, (True, b"4")]}
    atomic_write.write(content, tmp_path / "deep" / "er" / "a.pth")
    read = safe_load.read(tmp_path / "deep" / "er" / "a.pth")
    assert torch.equal(read.pop("w"), content["w"])
    assert read == {"n": content["n"]}
    plain = torch.load(tmp_path / "deep" / "er" / "a.pth", weights_only=True)
    assert plain["n"] == content["n"]


def record_calls(monkeypatch):
    calls: list[tuple[str, str]] = []

    def name_of(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return "temporary" if path.endswith(is_checkpoint.TEMP_SUFFIX) else path

    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(descriptor):
        size = os.fstat(descriptor).st_size
        calls.append(("fsync", name_of(descriptor), size))
        real["fsync"](descriptor)

    def replace(source, target):
        assert str(source).endswith(is_checkpoint.TEMP_SUFFIX)
        assert Path(source).parent == Path(target).parent, "a rename across folders may be a copy"
        calls.append(("replace", str(target)))
        real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_contents_are_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = record_calls(monkeypatch)
    atomic_write.write({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    size = (tmp_path / "a.pth").stat().st_size
    assert [call[:2] for call in calls] == [
        ("fsync", "temporary"),
        ("replace", str(tmp_path / "a.pth")),
        ("fsync", str(tmp_path)),
    ]
    assert calls[0][2] == size, "fsync came before everything was written"


def test_a_link_is_renamed_into_place_and_the_folder_flushed(tmp_path, monkeypatch):
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    atomic_write.write({"b": 1}, tmp_path / "b.pth")
    calls = record_calls(monkeypatch)
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert calls[0] == ("replace", str(tmp_path / "b.pth"))
    assert calls[1][:2] == ("fsync", str(tmp_path))
    assert (tmp_path / "a.pth").samefile(tmp_path / "b.pth")
    assert not litter(tmp_path)


def test_where_there_are_no_links_the_file_is_copied_durably(tmp_path, monkeypatch):
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    calls = record_calls(monkeypatch)

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "sub" / "b.pth")
    assert [call[0] for call in calls] == ["fsync", "replace", "fsync"]
    assert safe_load.read(tmp_path / "sub" / "b.pth") == {"a": 1}
    assert not (tmp_path / "a.pth").samefile(tmp_path / "sub" / "b.pth")


def test_a_duplicate_of_itself_is_itself(tmp_path):
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "a.pth")
    assert safe_load.read(tmp_path / "a.pth") == {"a": 1}


def test_a_later_save_leaves_the_other_name_of_a_file_alone(tmp_path):
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    atomic_write.write({"a": 2}, tmp_path / "a.pth")
    assert safe_load.read(tmp_path / "b.pth") == {"a": 1}


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    name = "x" * 251 + ".pth"
    atomic_write.write({"a": 1}, tmp_path / name)
    atomic_write.duplicate(tmp_path / name, tmp_path / ("y" * 251 + ".pth"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "null\0byte.pth"])
def test_an_impossible_name_is_a_clear_error(tmp_path, name):
    with pytest.raises(SaveError, match="could not save to"):
        atomic_write.write({"a": 1}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---- failing to write ---------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(full_disk):
    path = full_disk / "a.pth"
    atomic_write.write({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    for _ in range(3):  # nothing is left that would make it fuller
        with pytest.raises(SaveError, match=r"a\.pth.*[Nn]o space left") as caught:
            atomic_write.write({"w": torch.zeros(100_000)}, path)
        assert isinstance(caught.value, OSError)
    assert path.read_bytes() == before
    assert os.listdir(full_disk) == ["a.pth"]
    atomic_write.write({"w": torch.ones(1000)}, path)
    assert safe_load.read(path)["w"].sum() == 1000


@pytest.mark.parametrize("limit", [1, 600, 4096, 50_000, 399_000])
def test_a_write_that_stops_anywhere_leaves_the_old_file(tmp_path, limit):
    path = tmp_path / "a.pth"
    atomic_write.write({"a": 1}, path)
    before = path.read_bytes()
    with largest_file(limit), pytest.raises(SaveError, match=r"[Ff]ile too large"):
        atomic_write.write({"w": torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_copy_that_does_not_fit_is_one_clear_error(tmp_path, monkeypatch):
    atomic_write.write({"w": torch.zeros(10_000)}, tmp_path / "a.pth")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "far")))
    with largest_file(2000), pytest.raises(SaveError, match="File too large") as caught:
        atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert str(caught.value).count("could not save") == 1
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_read_only_file_system_is_named(read_only):
    for action in (
        lambda: atomic_write.write({"a": 2}, read_only / "old.pth"),
        lambda: atomic_write.write({"a": 2}, read_only / "sub" / "new.pth"),
        lambda: atomic_write.duplicate(read_only / "old.pth", read_only / "new.pth"),
    ):
        with pytest.raises(SaveError, match=r"Read-only file system.*can be written"):
            action()
    assert safe_load.read(read_only / "old.pth") == {"a": 1}
    assert os.listdir(read_only) == ["old.pth"]


def test_a_path_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "a.pth").mkdir()
    atomic_write.write({"a": 1}, tmp_path / "b.pth")
    with pytest.raises(SaveError, match=r"a\.pth.*it is a folder"):
        atomic_write.write({"a": 1}, tmp_path / "a.pth")
    with pytest.raises(SaveError, match=r"a\.pth"):
        atomic_write.duplicate(tmp_path / "b.pth", tmp_path / "a.pth")
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]
    assert not litter(tmp_path)


def test_a_folder_whose_parent_is_a_file_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SaveError, match="runs"):
        atomic_write.write({"a": 1}, tmp_path / "runs" / "a.pth")
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path):
    atomic_write.write({"a": 1}, tmp_path / "runs" / "a.pth")
    shutil.rmtree(tmp_path / "runs")
    atomic_write.write({"a": 2}, tmp_path / "runs" / "a.pth")
    assert safe_load.read(tmp_path / "runs" / "a.pth") == {"a": 2}


def test_a_folder_removed_during_the_write_is_an_error(tmp_path, monkeypatch):
    real = torch_archive.write

    def save(content, file, records):
        real(content, file, records)
        shutil.rmtree(tmp_path / "runs")

    monkeypatch.setattr(torch_archive, "write", save)
    with pytest.raises(SaveError, match="No such file"):
        atomic_write.write({"a": 1}, tmp_path / "runs" / "a.pth")


def test_a_file_that_cannot_be_linked_to_since_it_is_gone(tmp_path):
    with pytest.raises(SaveError, match="No such file"):
        atomic_write.duplicate(tmp_path / "gone.pth", tmp_path / "b.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_other_errors_pass_unchanged_and_leave_nothing(tmp_path, monkeypatch, error):
    def save(content, file, records):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch_archive, "write", save)
    with pytest.raises(error):
        atomic_write.write({"a": 1}, tmp_path / "a.pth")
    assert os.listdir(tmp_path) == []


# ---- killed while writing -----------------------------------------------------------------------

CONTENTS = [{"number": number, "w": torch.full((400_000,), float(number))} for number in range(2)]


@contextlib.contextmanager
def process(function, *arguments):
    """A real process of its own, killed at the end; made by forking, which takes no time."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
        child.close()


def write_for_ever(path, started):
    number = 0
    while True:
        atomic_write.write(CONTENTS[number % 2], path)
        number += 1
        started.set()


def test_sigkill_leaves_the_old_or_the_new_file_and_the_next_save_sweeps(tmp_path):
    path = tmp_path / "a.pth"
    rng = random.Random(0)
    found_litter, numbers = 0, set()
    for _ in range(25):
        started = multiprocessing.get_context("fork").Event()
        with process(write_for_ever, path, started):
            assert started.wait(10)
            time.sleep(rng.uniform(0, 0.02))
        content = safe_load.read(path)
        assert (content["w"] == content["number"]).all()
        numbers.add(content["number"])
        found_litter += bool(litter(tmp_path))
        assert len(litter(tmp_path)) <= 1, "a save did not sweep what the one before left"
    assert found_litter, "no kill hit a write"
    assert numbers == {0, 1}
    atomic_write.write({"last": True}, tmp_path / "b.pth")
    assert not litter(tmp_path)


def write_half_and_die(path):
    def save(content, file, records):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch_archive.write = save
    atomic_write.write({}, path)


def test_a_killed_writers_file_is_swept_by_a_save_of_any_name(tmp_path):
    with process(write_half_and_die, tmp_path / "a.pth") as child:
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert len(litter(tmp_path)) == 1
    assert not (tmp_path / "a.pth").exists()
    atomic_write.write({"a": 1}, tmp_path / "other.pth")
    assert os.listdir(tmp_path) == ["other.pth"]


def test_a_save_does_not_sweep_the_file_of_a_living_writer(tmp_path, monkeypatch):
    """Two savers of one folder: the second must not remove what the first is writing."""
    real = torch_archive.write

    def save(content, file, records):
        real(content, file, records)
        monkeypatch.setattr(torch_archive, "write", real)
        atomic_write.write({"second": True}, tmp_path / "b.pth")

    monkeypatch.setattr(torch_archive, "write", save)
    atomic_write.write({"first": True}, tmp_path / "a.pth")
    assert safe_load.read(tmp_path / "a.pth") == {"first": True}
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]


def hold_a_file(folder, names):
    file = temp_files.create_locked(folder)
    names.put(Path(file.name).name)
    time.sleep(60)


def test_the_sweep_spares_a_living_process_and_everything_else(tmp_path):
    names = multiprocessing.get_context("fork").SimpleQueue()
    kept = [".hidden", "notes" + is_checkpoint.TEMP_SUFFIX, ".abandoned.pth"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / (".dead" + is_checkpoint.TEMP_SUFFIX)).write_text("litter")
    with process(hold_a_file, tmp_path, names):
        alive = names.get()
        temp_files.remove_stale(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, alive])
    names.close()
    temp_files.remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_sweep_of_a_folder_that_is_gone_is_nothing(tmp_path):
    temp_files.remove_stale(tmp_path / "gone")


def test_a_writer_whose_new_file_was_swept_makes_another(tmp_path, monkeypatch):
    """The instant between making a file and locking it."""
    import fcntl

    real, swept = fcntl.flock, []

    def flock(descriptor, how):
        if not swept:
            swept.append(True)
            for name in litter(tmp_path):
                (tmp_path / name).unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    file = temp_files.create_locked(tmp_path)
    assert Path(file.name).exists()
    file.close()


def test_without_locks_nothing_is_swept_and_everything_can_be_written(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    (tmp_path / (".dead" + is_checkpoint.TEMP_SUFFIX)).write_text("litter")
    monkeypatch.setattr(fcntl, "flock", flock)
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert safe_load.read(tmp_path / "b.pth") == {"a": 1}
    assert len(litter(tmp_path)) == 1


# ---- removing -----------------------------------------------------------------------------------


def test_removing_a_file_that_is_gone_is_fine(tmp_path):
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    atomic_write.remove(tmp_path / "a.pth")
    atomic_write.remove(tmp_path / "a.pth")
    assert os.listdir(tmp_path) == []
