from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
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
    UnsafeCheckpointError,
)
from fitkit.checkpointing import archive, files

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
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        for info in zipped.infolist():
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
                archive.verify(scratch)
            assert repr(name) in str(caught.value)
            with pytest.raises(DamagedCheckpointError):
                archive.read(scratch, mmap=True)


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
            archive.read(scratch)


def ends_well(path: Path, original) -> None:
    """A damaged file is read as what it was, or refused with an error of ours."""
    try:
        content = archive.read(path)
    except CheckpointError:
        return
    assert same(content, original), "damage was read as if it were content"


def test_random_damage_never_changes_what_is_read(whole, scratch):
    scratch.write_bytes(whole)
    original = archive.read(scratch)
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
    original = archive.read(scratch)
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
        archive.read(scratch)


def zip_of(path: Path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, data in entries.items():
            zipped.writestr(name, data)


def test_a_compression_bomb_is_refused_without_being_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    zip_of(path, {"a/data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    began = time.monotonic()
    with pytest.raises(DamagedCheckpointError, match="compressed"):
        archive.read(path)
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
        archive.read(path)


def test_a_file_that_is_not_there_and_a_folder_have_errors_of_their_own(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no file") as caught:
        archive.read(tmp_path / "gone.pth")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(CheckpointError, match="is a folder"):
        archive.read(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        archive.read(tmp_path / "pipe.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights", pickle.dumps({"a": 1})])
def test_other_kinds_of_files_are_no_checkpoints(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.pth.*not a whole checkpoint"):
        archive.read(tmp_path / "a.pth")


def test_a_zip_that_torch_did_not_write(tmp_path):
    zip_of(tmp_path / "a.pth", {"hello.txt": b"hello"})
    archive.verify(tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        archive.read(tmp_path / "a.pth")


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
    archive.verify(tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pth.*could run code"):
        archive.read(tmp_path / "a.pth")
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_a_state_setter_is_not_called(tmp_path):
    torch.save({"a": Sets()}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError):
        archive.read(tmp_path / "a.pth")
    assert not Sets.called


class Sets:
    called = False

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        Sets.called = True


def rewrite_pickle(path: Path, data: bytes) -> None:
    """The file with another pickle in it, checksums and all."""
    with zipfile.ZipFile(path) as zipped:
        entries = {info.filename: zipped.read(info) for info in zipped.infolist()}
    zip_of(path, {k: data if k.endswith("data.pkl") else v for k, v in entries.items()})


def test_random_pickles_with_valid_checksums_end_in_our_errors(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.randn(3), "b": [1, {"c": (2.0, None)}]}, path)
    with zipfile.ZipFile(path) as zipped:
        pickled = zipped.read(next(n for n in zipped.namelist() if n.endswith("data.pkl")))
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
            archive.read(path)
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
        archive.read(path)
