from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    SaveError,
    UnsafeCheckpointError,
)
from fitkit.checkpointing import files, temporary


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(temporary.SUFFIX)]


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
    files.write({"a": 1}, folder / "old.pth")
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
    files.write(content, tmp_path / "deep" / "er" / "a.pth")
    read = files.read(tmp_path / "deep" / "er" / "a.pth")
    assert torch.equal(read.pop("w"), content["w"])
    assert read == {"n": content["n"]}
    plain = torch.load(tmp_path / "deep" / "er" / "a.pth", weights_only=True)
    assert plain["n"] == content["n"]


def record_calls(monkeypatch):
    calls: list[tuple[str, str]] = []

    def name_of(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return "temporary" if path.endswith(temporary.SUFFIX) else path

    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(descriptor):
        size = os.fstat(descriptor).st_size
        calls.append(("fsync", name_of(descriptor), size))
        real["fsync"](descriptor)

    def replace(source, target):
        assert str(source).endswith(temporary.SUFFIX)
        assert Path(source).parent == Path(target).parent, "a rename across folders may be a copy"
        calls.append(("replace", str(target)))
        real["replace"](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_contents_are_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = record_calls(monkeypatch)
    files.write({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    size = (tmp_path / "a.pth").stat().st_size
    assert [call[:2] for call in calls] == [
        ("fsync", "temporary"),
        ("replace", str(tmp_path / "a.pth")),
        ("fsync", str(tmp_path)),
    ]
    assert calls[0][2] == size, "fsync came before everything was written"


def test_a_link_is_renamed_into_place_and_the_folder_flushed(tmp_path, monkeypatch):
    files.write({"a": 1}, tmp_path / "a.pth")
    files.write({"b": 1}, tmp_path / "b.pth")
    calls = record_calls(monkeypatch)
    files.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert calls[0] == ("replace", str(tmp_path / "b.pth"))
    assert calls[1][:2] == ("fsync", str(tmp_path))
    assert (tmp_path / "a.pth").samefile(tmp_path / "b.pth")
    assert not litter(tmp_path)


def test_where_there_are_no_links_the_file_is_copied_durably(tmp_path, monkeypatch):
    files.write({"a": 1}, tmp_path / "a.pth")
    calls = record_calls(monkeypatch)

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    files.duplicate(tmp_path / "a.pth", tmp_path / "sub" / "b.pth")
    assert [call[0] for call in calls] == ["fsync", "replace", "fsync"]
    assert files.read(tmp_path / "sub" / "b.pth") == {"a": 1}
    assert not (tmp_path / "a.pth").samefile(tmp_path / "sub" / "b.pth")


def test_a_duplicate_of_itself_is_itself(tmp_path):
    files.write({"a": 1}, tmp_path / "a.pth")
    files.duplicate(tmp_path / "a.pth", tmp_path / "a.pth")
    assert files.read(tmp_path / "a.pth") == {"a": 1}


def test_a_later_save_leaves_the_other_name_of_a_file_alone(tmp_path):
    files.write({"a": 1}, tmp_path / "a.pth")
    files.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    files.write({"a": 2}, tmp_path / "a.pth")
    assert files.read(tmp_path / "b.pth") == {"a": 1}


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    name = "x" * 251 + ".pth"
    files.write({"a": 1}, tmp_path / name)
    files.duplicate(tmp_path / name, tmp_path / ("y" * 251 + ".pth"))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "null\0byte.pth"])
def test_an_impossible_name_is_a_clear_error(tmp_path, name):
    with pytest.raises(SaveError, match="could not save to"):
        files.write({"a": 1}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ---- failing to write ---------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(full_disk):
    path = full_disk / "a.pth"
    files.write({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    for _ in range(3):  # nothing is left that would make it fuller
        with pytest.raises(SaveError, match=r"a\.pth.*[Nn]o space left") as caught:
            files.write({"w": torch.zeros(100_000)}, path)
        assert isinstance(caught.value, OSError)
    assert path.read_bytes() == before
    assert os.listdir(full_disk) == ["a.pth"]
    files.write({"w": torch.ones(1000)}, path)
    assert files.read(path)["w"].sum() == 1000


@pytest.mark.parametrize("limit", [1, 600, 4096, 50_000, 399_000])
def test_a_write_that_stops_anywhere_leaves_the_old_file(tmp_path, limit):
    path = tmp_path / "a.pth"
    files.write({"a": 1}, path)
    before = path.read_bytes()
    with largest_file(limit), pytest.raises(SaveError, match=r"[Ff]ile too large"):
        files.write({"w": torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_copy_that_does_not_fit_is_one_clear_error(tmp_path, monkeypatch):
    files.write({"w": torch.zeros(10_000)}, tmp_path / "a.pth")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "far")))
    with largest_file(2000), pytest.raises(SaveError, match="File too large") as caught:
        files.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert str(caught.value).count("could not save") == 1
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_read_only_file_system_is_named(read_only):
    for action in (
        lambda: files.write({"a": 2}, read_only / "old.pth"),
        lambda: files.write({"a": 2}, read_only / "sub" / "new.pth"),
        lambda: files.duplicate(read_only / "old.pth", read_only / "new.pth"),
    ):
        with pytest.raises(SaveError, match=r"Read-only file system.*can be written"):
            action()
    assert files.read(read_only / "old.pth") == {"a": 1}
    assert os.listdir(read_only) == ["old.pth"]


def test_a_path_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "a.pth").mkdir()
    files.write({"a": 1}, tmp_path / "b.pth")
    with pytest.raises(SaveError, match=r"a\.pth.*it is a folder"):
        files.write({"a": 1}, tmp_path / "a.pth")
    with pytest.raises(SaveError, match=r"a\.pth"):
        files.duplicate(tmp_path / "b.pth", tmp_path / "a.pth")
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]
    assert not litter(tmp_path)


def test_a_folder_whose_parent_is_a_file_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SaveError, match="runs"):
        files.write({"a": 1}, tmp_path / "runs" / "a.pth")
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path):
    files.write({"a": 1}, tmp_path / "runs" / "a.pth")
    shutil.rmtree(tmp_path / "runs")
    files.write({"a": 2}, tmp_path / "runs" / "a.pth")
    assert files.read(tmp_path / "runs" / "a.pth") == {"a": 2}


def test_a_folder_removed_during_the_write_is_an_error(tmp_path, monkeypatch):
    real = torch.save

    def save(content, file):
        real(content, file)
        shutil.rmtree(tmp_path / "runs")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(SaveError, match="No such file"):
        files.write({"a": 1}, tmp_path / "runs" / "a.pth")


def test_a_file_that_cannot_be_linked_to_since_it_is_gone(tmp_path):
    with pytest.raises(SaveError, match="No such file"):
        files.duplicate(tmp_path / "gone.pth", tmp_path / "b.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_other_errors_pass_unchanged_and_leave_nothing(tmp_path, monkeypatch, error):
    def save(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(error):
        files.write({"a": 1}, tmp_path / "a.pth")
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
        files.write(CONTENTS[number % 2], path)
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
        content = files.read(path)
        assert (content["w"] == content["number"]).all()
        numbers.add(content["number"])
        found_litter += bool(litter(tmp_path))
        assert len(litter(tmp_path)) <= 1, "a save did not sweep what the one before left"
    assert found_litter, "no kill hit a write"
    assert numbers == {0, 1}
    files.write({"last": True}, tmp_path / "b.pth")
    assert not litter(tmp_path)


def write_half_and_die(path):
    def save(content, file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    files.write({}, path)


def test_a_killed_writers_file_is_swept_by_a_save_of_any_name(tmp_path):
    with process(write_half_and_die, tmp_path / "a.pth") as child:
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert len(litter(tmp_path)) == 1
    assert not (tmp_path / "a.pth").exists()
    files.write({"a": 1}, tmp_path / "other.pth")
    assert os.listdir(tmp_path) == ["other.pth"]


def test_a_save_does_not_sweep_the_file_of_a_living_writer(tmp_path, monkeypatch):
    """Two savers of one folder: the second must not remove what the first is writing."""
    real = torch.save

    def save(content, file):
        real(content, file)
        monkeypatch.setattr(torch, "save", real)
        files.write({"second": True}, tmp_path / "b.pth")

    monkeypatch.setattr(torch, "save", save)
    files.write({"first": True}, tmp_path / "a.pth")
    assert files.read(tmp_path / "a.pth") == {"first": True}
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]


def hold_a_file(folder, names):
    file = temporary.create(folder)
    names.put(Path(file.name).name)
    time.sleep(60)


def test_the_sweep_spares_a_living_process_and_everything_else(tmp_path):
    names = multiprocessing.get_context("fork").SimpleQueue()
    kept = [".hidden", "notes" + temporary.SUFFIX, ".abandoned.pth"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / (".dead" + temporary.SUFFIX)).write_text("litter")
    with process(hold_a_file, tmp_path, names):
        alive = names.get()
        temporary.sweep(tmp_path)
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, alive])
    names.close()
    temporary.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_sweep_of_a_folder_that_is_gone_is_nothing(tmp_path):
    temporary.sweep(tmp_path / "gone")


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
    file = temporary.create(tmp_path)
    assert Path(file.name).exists()
    file.close()


def test_without_locks_nothing_is_swept_and_everything_can_be_written(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    (tmp_path / (".dead" + temporary.SUFFIX)).write_text("litter")
    monkeypatch.setattr(fcntl, "flock", flock)
    files.write({"a": 1}, tmp_path / "a.pth")
    files.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert files.read(tmp_path / "b.pth") == {"a": 1}
    assert len(litter(tmp_path)) == 1


# ---- removing -----------------------------------------------------------------------------------


def test_removing_a_file_that_is_gone_is_fine(tmp_path):
    files.write({"a": 1}, tmp_path / "a.pth")
    files.remove(tmp_path / "a.pth")
    files.remove(tmp_path / "a.pth")
    assert os.listdir(tmp_path) == []


# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.pth"
    content = {
        "weights": {"a": torch.randn(64, 8), "b": torch.arange(50)},
        "plain": [1, 2.0, "three", {"four": (5, None)}],
    }
    files.write(content, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "damaged.pth"


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def records(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each record's content begins and ends."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            header = data[info.header_offset : info.header_offset + 30]
            start = info.header_offset + 30
            start += int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
            found[info.filename] = (start, start + info.file_size)
    return found


def test_a_flipped_bit_in_any_record_is_found_and_the_record_named(whole, scratch):
    rng = random.Random(0)
    for name, (start, end) in records(whole).items():
        for _ in range(min(12, end - start)):
            damaged = bytearray(whole)
            damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
            scratch.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError, match="checksum of its record") as caught:
                files.verify(scratch)
            assert repr(name) in str(caught.value)
            with pytest.raises(DamagedCheckpointError):
                files.read(scratch, mmap=True)


def test_torch_itself_does_not_notice_so_the_check_is_needed(whole, scratch):
    start, _ = next(span for name, span in records(whole).items() if name.endswith("data/0"))
    damaged = bytearray(whole)
    damaged[start + 2] ^= 1
    scratch.write_bytes(damaged)
    loaded = torch.load(scratch, weights_only=True)["weights"]["a"]
    scratch.write_bytes(whole)
    assert not torch.equal(loaded, torch.load(scratch, weights_only=True)["weights"]["a"])


def test_every_truncation_is_found(whole, scratch):
    rng = random.Random(1)
    lengths = {0, 1, 3, 4, 22, len(whole) - 1, len(whole) - 22, len(whole) - 23}
    lengths |= {rng.randrange(len(whole)) for _ in range(300)}
    for length in lengths:
        scratch.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError, match="not a whole checkpoint"):
            files.read(scratch)


def ends_well(path: Path, original) -> None:
    """A damaged file is read as what it was, or refused with an error of ours."""
    try:
        content = files.read(path)
    except CheckpointError:
        return
    assert same(content, original), "damage was read as if it were content"


def test_random_damage_never_changes_what_is_read(whole, scratch):
    scratch.write_bytes(whole)
    original = files.read(scratch)
    rng = random.Random(2)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            cut = rng.randrange(len(damaged))
            damaged[cut : cut + rng.randrange(1, 200)] = rng.randbytes(rng.randrange(100))
        scratch.write_bytes(damaged)
        ends_well(scratch, original)


def test_damage_to_the_directory_of_the_file_ends_in_our_errors(whole, scratch):
    """Every byte of headers, flipped: types of compression, flags, sizes, names, offsets."""
    scratch.write_bytes(whole)
    original = files.read(scratch)
    directory = whole.index(b"PK\x01\x02")
    rng = random.Random(3)
    for position in range(directory, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        scratch.write_bytes(damaged)
        ends_well(scratch, original)


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.binary(max_size=300))
def test_noise_is_no_checkpoint(scratch, data):
    scratch.write_bytes(data)
    with pytest.raises(DamagedCheckpointError):
        files.read(scratch)


def zip_of(path: Path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_compression_bomb_is_refused_without_being_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    zip_of(path, {"a/data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    began = time.monotonic()
    with pytest.raises(DamagedCheckpointError, match="compressed"):
        files.read(path)
    assert time.monotonic() - began < 0.3


def test_records_that_overlap_are_refused(tmp_path):
    """One record listed a thousand times costs a reader a thousand times its size."""
    path = tmp_path / "bomb.pth"
    zip_of(path, {f"a/{number}": bytes(1000) for number in range(3)})
    data = path.read_bytes()
    directory = data.index(b"PK\x01\x02")
    entry_size = data.index(b"PK\x01\x02", directory + 1) - directory
    entry = data[directory : directory + entry_size]
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    end[8:10] = end[10:12] = (1000).to_bytes(2, "little")
    end[12:16] = (1000 * entry_size).to_bytes(4, "little")
    path.write_bytes(data[:directory] + entry * 1000 + end)
    with pytest.raises(DamagedCheckpointError, match="not a whole checkpoint"):
        files.read(path)


def test_a_file_that_is_not_there_and_a_folder_have_errors_of_their_own(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no file") as caught:
        files.read(tmp_path / "gone.pth")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(CheckpointError, match="is a folder"):
        files.read(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        files.read(tmp_path / "pipe.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights", pickle.dumps({"a": 1})])
def test_other_kinds_of_files_are_no_checkpoints(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.pth.*not a whole checkpoint"):
        files.read(tmp_path / "a.pth")


def test_a_zip_that_torch_did_not_write(tmp_path):
    zip_of(tmp_path / "a.pth", {"hello.txt": b"hello"})
    files.verify(tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        files.read(tmp_path / "a.pth")


# ---- attacks ------------------------------------------------------------------------------------


class Trap:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def traps(marker: Path):
    code = f"open({str(marker)!r}, 'w').write('run')"
    return {
        "os.system": Trap(os.system, f"touch {marker}"),
        "eval": Trap(eval, code),
        "exec": Trap(exec, code),
        "open": Trap(open, str(marker), "w"),
        "subprocess": Trap(subprocess.check_call, ["touch", str(marker)]),
        "getattr": Trap(getattr, "text", "upper"),
        "import": Trap(__import__, "antigravity"),
        "torch.load": Trap(torch.load, str(marker)),
        "hub": Trap(torch.hub.load, "a/b", "c"),
        "class": Trap,
    }


@pytest.mark.parametrize("kind", traps(Path("x")))
@pytest.mark.parametrize("where", ["top", "deep"])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, kind, where):
    marker = tmp_path / "marker"
    trap = traps(marker)[kind]
    content = {"a": torch.zeros(2), "b": [{"c": trap}]} if where == "deep" else trap
    torch.save(content, tmp_path / "a.pth")
    files.verify(tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pth.*could run code"):
        files.read(tmp_path / "a.pth")
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_a_state_setter_is_not_called(tmp_path):
    torch.save({"a": Sets()}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError):
        files.read(tmp_path / "a.pth")
    assert not Sets.called


class Sets:
    called = False

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        Sets.called = True


def rewrite_pickle(path: Path, data: bytes) -> None:
    """The file with another pickle in it, checksums and all."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    zip_of(path, {k: data if k.endswith("data.pkl") else v for k, v in entries.items()})


def test_random_pickles_with_valid_checksums_end_in_our_errors(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.randn(3), "b": [1, {"c": (2.0, None)}]}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    rng = random.Random(4)
    outcomes = set()
    for _ in range(300):
        data = bytearray(pickled)
        for _ in range(rng.choice([1, 2, 4])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        rewrite_pickle(path, bytes(data))
        try:
            files.read(path)
            outcomes.add("read")
        except CheckpointError as error:
            outcomes.add(type(error).__name__)
    assert {"UnsafeCheckpointError", "DamagedCheckpointError"} <= outcomes


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        b"\x80\x02h\x05.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x0013+\x85R.",
        b".",
        b"",
    ],
    ids=["marks", "nested", "long_string", "long_int", "memo", "system", "eval", "stop", "empty"],
)
def test_hand_made_pickles_end_in_our_errors_or_in_data(tmp_path, data):
    path = tmp_path / "a.pth"
    torch.save({"a": 1}, path)
    rewrite_pickle(path, data)
    with contextlib.suppress(CheckpointError):
        files.read(path)


def test_begins_like_a_checkpoint(tmp_path):
    files.write({}, tmp_path / "a")
    (tmp_path / "b").write_text("b")
    assert files.is_checkpoint_like(tmp_path / "a")
    assert not files.is_checkpoint_like(tmp_path / "b")
    assert not files.is_checkpoint_like(tmp_path / "gone")
