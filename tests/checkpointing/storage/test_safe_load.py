from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fitkit import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.storage import archive, atomic_write, safe_load

# ---- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.pth"
    content = {
        "weights": {"a": torch.randn(64, 8), "b": torch.arange(50)},
        "plain": [1, 2.0, "three", {"four": (5, None)}],
    }
    atomic_write.write(content, path)
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
                safe_load.verify(scratch)
            assert repr(name) in str(caught.value)
            with pytest.raises(DamagedCheckpointError):
                safe_load.read(scratch, mmap=True)


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
            safe_load.read(scratch)


def ends_well(path: Path, original) -> None:
    """A damaged file is read as what it was, or refused with an error of ours."""
    try:
        content = safe_load.read(path)
    except CheckpointError:
        return
    assert same(content, original), "damage was read as if it were content"


def test_random_damage_never_changes_what_is_read(whole, scratch):
    scratch.write_bytes(whole)
    original = safe_load.read(scratch)
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
    original = safe_load.read(scratch)
    directory = whole.index(b"PK\x01\x02")
    rng = random.Random(3)
    for position in range(directory, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        scratch.write_bytes(damaged)
        ends_well(scratch, original)


def test_no_bit_of_the_directory_changes_what_is_read(tmp_path):
    """A record that is marked as a folder, for instance, would be a tensor of zeros for torch."""
    state = {"a": torch.arange(5.0), "b": [1, 2.5]}
    path = tmp_path / "a.pth"
    atomic_write.write(state, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        begin = archive.start_dir
    for position in range(begin, len(data)):
        for bit in range(8):
            spoiled = bytearray(data)
            spoiled[position] ^= 1 << bit
            path.write_bytes(spoiled)
            with contextlib.suppress(CheckpointError):
                assert same(safe_load.read(path), state), (position - begin, bit)


@settings(max_examples=150, database=None)
@given(data=st.binary(max_size=300))
def test_noise_is_no_checkpoint(scratch, data):
    scratch.write_bytes(data)
    with pytest.raises(DamagedCheckpointError):
        safe_load.read(scratch)


def zip_of(path: Path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, data in entries.items():
            zipped.writestr(name, data)


def test_a_compression_bomb_is_refused_without_being_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    zip_of(path, {"a/data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    began = time.monotonic()
    with pytest.raises(DamagedCheckpointError, match="compressed"):
        safe_load.read(path)
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
        safe_load.read(path)


@pytest.mark.parametrize("other", ["a/data/x/0", "a/x/data/0", "x/data/0"])
def test_a_record_that_ends_like_that_of_a_tensor_is_not_taken_for_it(tmp_path, other):
    """torch would read what lies behind the record of the tensor."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as zipped:
        entries = {info.filename: zipped.read(info) for info in zipped.infolist()}
    zip_of(path, {**entries, "a/data/0": b"abcd", other: bytes(4000)})
    for mmap in (False, True):
        with pytest.raises(DamagedCheckpointError, match="claims more memory"):
            safe_load.read(path, mmap=mmap)


def test_a_file_that_is_not_there_and_a_folder_have_errors_of_their_own(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no file") as caught:
        safe_load.read(tmp_path / "gone.pth")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(CheckpointError, match="is a folder"):
        safe_load.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".pth", "a\0b.pth", "a/" * 3000 + "b.pth"], ids=["long", "null", "deep"]
)
def test_a_name_that_no_file_can_have_is_an_error_of_ours(tmp_path, name):
    for use in (safe_load.verify, safe_load.read, safe_load.read_without_tensors):
        with pytest.raises(CheckpointError):
            use(tmp_path / name)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        safe_load.read(tmp_path / "pipe.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"weights", pickle.dumps({"a": 1})])
def test_other_kinds_of_files_are_no_checkpoints(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"a\.pth.*not a whole checkpoint"):
        safe_load.read(tmp_path / "a.pth")


def test_a_zip_that_torch_did_not_write(tmp_path):
    zip_of(tmp_path / "a.pth", {"hello.txt": b"hello"})
    safe_load.verify(tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        safe_load.read(tmp_path / "a.pth")


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
    safe_load.verify(tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pth.*could run code"):
        safe_load.read(tmp_path / "a.pth")
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_a_state_setter_is_not_called(tmp_path):
    torch.save({"a": Sets()}, tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpointError):
        safe_load.read(tmp_path / "a.pth")
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
            safe_load.read(path)
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
        safe_load.read(path)


# ---- many bytes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A folder in memory, for files that are large: waiting for the disk shows nothing."""
    base = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=base if base.is_dir() else tmp_path_factory.mktemp("m")))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def large(memory):
    """24 MiB: enough to be verified by several threads, in records of very different sizes."""
    path = memory / "large.pth"
    tensors = {"big": torch.randn(4 << 20), "half": torch.randn(2 << 20)}
    tensors |= {f"small{number}": torch.randn(number + 1) for number in range(6)}
    atomic_write.write({"weights": tensors, "plain": [1, "two"]}, path)
    assert path.stat().st_size > archive._BYTES_WORTH_THREADS
    return path


@pytest.fixture
def several_threads(monkeypatch):
    """Whatever machine this is, files worth it are verified by several threads."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    started, real = [], archive.ThreadPoolExecutor

    def pool(*arguments):
        started.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(archive, "ThreadPoolExecutor", pool)
    return started


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def spans(path: Path) -> dict[str, tuple[int, int]]:
    """As ``records``, without reading the whole file."""
    with zipfile.ZipFile(path) as zipped, path.open("rb") as file:
        found = {}
        for info in zipped.infolist():
            file.seek(info.header_offset + 26)
            lengths = file.read(4)
            start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            start += int.from_bytes(lengths[2:], "little")
            found[info.filename] = (start, start + info.file_size)
    return found


def test_several_threads_find_a_flipped_bit_in_any_record(large, several_threads):
    safe_load.verify(large)
    rng = random.Random(5)
    tried = 0
    for name, (start, end) in spans(large).items():
        for position in {start, end - 1, rng.randrange(start, end)} if end > start else ():
            bit = rng.randrange(8)
            flip(large, position, bit)
            with pytest.raises(DamagedCheckpointError, match="checksum of its record") as caught:
                safe_load.verify(large)
            assert repr(name) in str(caught.value)
            flip(large, position, bit)
            tried += 1
    safe_load.verify(large)
    assert tried > 20
    assert len(several_threads) == tried + 2, "one thread did it all"


def test_several_threads_find_a_file_that_is_cut_off(large, memory, several_threads):
    """The directory is whole and says that the last record is longer than the file."""
    data = large.read_bytes()
    directory = data.index(b"PK\x01\x02", len(data) - 4096)
    path = memory / "cut.pth"
    path.write_bytes(data[: directory - (20 << 20)] + data[directory:])
    with pytest.raises(DamagedCheckpointError, match="not a whole checkpoint"):
        safe_load.verify(path)
    path.unlink()


def test_metadata_of_a_large_file_takes_a_small_part_of_the_time_of_reading(memory):
    path = memory / "huge.pth"
    content = {f"w{number}": torch.zeros(5 << 20) for number in range(10)}  # 200 MiB
    atomic_write.write(content, path)

    def least(function):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            function(path)
            times.append(time.perf_counter() - began)
        return min(times)

    del content
    found = safe_load.read_without_tensors(path)
    assert {one.device.type for one in found.values()} == {"meta"}
    assert least(safe_load.read_without_tensors) < 0.1 * least(safe_load.read)
    path.unlink()


def test_damage_among_the_tensors_leaves_the_structure_readable(whole, scratch):
    """But nobody may take it for a whole file."""
    for name, (start, end) in records(whole).items():
        damaged = bytearray(whole)
        damaged[(start + end) // 2] ^= 1
        scratch.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError):
            safe_load.verify(scratch)
        if "/data/" in name:
            found = safe_load.read_without_tensors(scratch)
            assert found["plain"] == [1, 2.0, "three", {"four": (5, None)}]
            assert found["weights"]["a"].shape == (64, 8)
            assert found["weights"]["a"].is_meta
        else:
            with pytest.raises(DamagedCheckpointError, match="checksum"):
                safe_load.read_without_tensors(scratch)


# ---- what is written can be read ----------------------------------------------------------------


def readable(value, path: Path):
    """What comes back of a state that could be saved."""
    atomic_write.write(encode(value), path)
    safe_load.verify(path)
    safe_load.read_without_tensors(path)
    return decode(safe_load.read(path, mmap=True))


@pytest.mark.parametrize("layout", ["sparse", "sparse_csr"], ids=["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_can_be_read_again(tmp_path, layout):
    tensor = getattr(torch.eye(3), f"to_{layout}")()
    back = readable({"a": tensor}, tmp_path / "a.pth")["a"]
    assert back.layout is tensor.layout
    assert torch.equal(back.to_dense(), torch.eye(3))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantized_tensors_can_be_read_again(tmp_path):
    values = torch.randn(3, 4)
    for kind in (torch.quint8, torch.qint8):
        for tensor in (
            torch.quantize_per_tensor(values, 0.1, 0, kind),
            torch.quantize_per_channel(values, torch.ones(3), torch.zeros(3), 0, kind),
        ):
            back = readable({"a": tensor}, tmp_path / "a.pth")["a"]
            assert torch.equal(back.int_repr(), tensor.int_repr())
            found = safe_load.read_without_tensors(tmp_path / "a.pth")["a"]
            assert found.is_meta
            assert (found.shape, found.dtype) == (tensor.shape, kind)
            assert found.nbytes == tensor.nbytes


@pytest.mark.parametrize(
    "leaf",
    [1, b"", b"x", np.arange(2), np.float32(1), Path("a"), range(3), datetime.timedelta(1),
     frozenset([1]), {1}, deque([1]), torch.ones(2), OrderedDict(a=1)],
    ids=lambda leaf: type(leaf).__name__,
)  # fmt: skip
@pytest.mark.parametrize("levels", [1, 97, 98, 99, 100])
def test_whatever_depth_is_written_can_be_read(tmp_path, leaf, levels):
    value = leaf
    for _ in range(levels):
        value = [value]
    try:
        encode(value)
    except CheckpointError:
        return  # refused when it is saved, as it should be
    back = readable(value, tmp_path / "a.pth")
    for _ in range(levels):
        back = back[0]
    assert type(back) is type(leaf) or isinstance(leaf, np.generic)


def test_nested_containers_that_are_written_as_tagged_dicts_can_be_read(tmp_path):
    value = 1
    for _ in range(60):
        value = deque([value])
    assert readable(value, tmp_path / "a.pth") == value


def test_a_layer_that_a_model_uses_many_times_can_be_read(memory):
    shared = nn.Linear(1000, 3000)
    model = nn.Sequential(*[shared] * 24)
    path = memory / "shared.pth"
    atomic_write.write(encode(model.state_dict()), path)
    assert path.stat().st_size < 13e6
    found = safe_load.read(path, mmap=True)
    path.unlink()
    assert torch.equal(found["23.weight"], shared.weight)


def test_a_shape_that_is_kept_many_times_can_be_read(tmp_path):
    value = [torch.Size(range(1, 9))] * 3000
    assert readable(value, tmp_path / "a.pth") == value


# ---- traps --------------------------------------------------------------------------------------


READS_ALL = """
import resource, sys, time
from pathlib import Path
import fitkit
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.storage import safe_load
from fitkit.checkpointing.catalog.metadata import read_metadata

folder = Path(sys.argv[1])
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (3 << 29)  # 1.5 GiB more than is taken already
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


def mapped(path):
    safe_load.read(path, mmap=True)


readers = (safe_load.read, mapped, safe_load.read_without_tensors, latest.read_full, read_metadata,
           fitkit.NNHandler.load)
for path in sorted(folder.iterdir()):
    for reader in readers:
        began = time.process_time()
        try:
            reader(path)
            print(path.stem, "was read by", reader.__name__)
        except fitkit.DamagedCheckpointError:
            pass
        except BaseException as error:
            print(path.stem, reader.__name__, repr(error))
        if time.process_time() - began > 3.0:
            print(path.stem, "took", reader.__name__, time.process_time() - began)
found = latest.find_latest([folder])
print("passed over", len(found.skipped), found.path)
"""


def nest(levels: int) -> bytes:
    """The pickle of lists in lists, as ``torch.save`` overflows the stack of some Pythons."""
    return b"]" * (levels + 1) + b"a" * levels


def laughs(levels: int, width: int):
    value: object = "ha"
    for _ in range(levels):
        value = [value] * width
    return value


def contained() -> list:
    value: list = []
    value.append(value)
    return value


def in_dict() -> dict:
    value: dict = {}
    value["again"] = value
    return value


def hidden(levels: int) -> OrderedDict:
    """Nesting where a module's state dict keeps its versions."""
    value = OrderedDict()
    for _ in range(levels):
        outer = OrderedDict(a=1)
        outer._metadata = value
        value = outer
    return value


TRAPS = {
    "terabytes by a stride of 0": lambda: torch.zeros(1).expand(10**12),
    "exabytes": lambda: torch.zeros(1).expand(2**60),
    "many of a gigabyte": lambda: [torch.zeros(1).expand(2**28)] * 50,
    "without values": lambda: torch.zeros(3, device="meta"),
    "a list in itself": contained,
    "a dict in itself": in_dict,
    "billions of laughs": lambda: laughs(30, 10),
    "millions of laughs": lambda: laughs(7, 10),
    "a laughing tensor": lambda: [laughs(22, 2), {"a": torch.zeros(2)}],
    "one gigabyte of text": lambda: [["x" * 1000] * 1000] * 1000,
    "one gigabyte of keys": lambda: [{"x" * 10_000: 1}] * 100_000,
    "one gigabyte of tuples as keys": lambda: [{("x" * 120,) * 900: 1}] * 10_000,
    "one gigabyte of digits": lambda: [[2**2030] * 1000] * 1200,
    "one tensor many times": lambda: [torch.zeros(100_000)] * 100_000,
}
PROGRAMS = {"10000 lists": nest(10_000), "250 lists": nest(250)}


def test_traps_are_refused_in_little_time_and_memory(tmp_path):
    state = {"model_state_dict": {"w": torch.zeros(2)}, "progress": {}}
    for name, trap in TRAPS.items():
        torch.save({**state, "trap": trap()}, tmp_path / f"{name}.pth")
    for name, program in PROGRAMS.items():
        torch.save({**state, "trap": "its place"}, path := tmp_path / f"{name}.pth")
        with zipfile.ZipFile(path) as zipped:
            pickled = zipped.read(f"{name}/data.pkl")
        place = b"X\x09\x00\x00\x00its place"
        assert pickled.count(place) == 1
        rewrite_pickle(path, pickled.replace(place, program))
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 5e6
        safe_load.verify(path)
    found = subprocess.run(
        [sys.executable, "-c", READS_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout == f"passed over {len(TRAPS) + len(PROGRAMS)} None\n"


def test_a_self_containing_list_and_deep_ones_made_by_hand(tmp_path):
    """Deeper than Python can pickle, so written as the pickle machine's own operations."""
    path = tmp_path / "a.pth"
    torch.save({"a": 1}, path)
    for data in (
        b"\x80\x02]q\x00h\x00a.",  # a list, appended to itself
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02}q\x00K\x01h\x00s.",
        b"\x80\x02" + b"K\x01" + b"\x85" * 20_000 + b".",
    ):
        rewrite_pickle(path, data)
        for mmap in (False, True):
            with pytest.raises(DamagedCheckpointError):
                safe_load.read(path, mmap=mmap)
        with pytest.raises(DamagedCheckpointError):
            safe_load.read_without_tensors(path)


def test_nesting_where_nobody_looks(tmp_path):
    """Attributes of an OrderedDict are read, too; what is in them must not bring a reader down."""
    path = tmp_path / "a.pth"
    for levels in (50, 1_000):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(200_000)
        try:
            torch.save({"state": hidden(levels)}, path)
        finally:
            sys.setrecursionlimit(limit)
        with contextlib.suppress(CheckpointError):
            encode(decode(safe_load.read(path)))
        with contextlib.suppress(CheckpointError):
            safe_load.read_without_tensors(path)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**100), 10**600])
def test_huge_numbers_are_only_numbers(tmp_path, number):
    path = tmp_path / "a.pth"
    torch.save({"a": number}, path)
    with contextlib.suppress(CheckpointError):
        assert safe_load.read(path) == {"a": number}


def test_empty_tensors_of_every_shape_are_no_trap(tmp_path):
    path = tmp_path / "a.pth"
    tensors = [torch.zeros(0), torch.zeros(0, 10**6), torch.zeros(10**9, 0, 10**9)]
    atomic_write.write(encode(tensors), path)
    assert [one.shape for one in safe_load.read(path)] == [one.shape for one in tensors]
    assert [one.shape for one in safe_load.read_without_tensors(path)] == [
        one.shape for one in tensors
    ]


def test_storages_that_are_smaller_than_their_tensors_say(tmp_path):
    """The sizes of storages and tensors are in the pickle; only the bytes are in the records."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as zipped:
        pickled = zipped.read(next(n for n in zipped.namelist() if n.endswith("data.pkl")))
    four = b"K\x04"
    assert pickled.count(four) == 2
    for number in (b"K\x05", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
                   b"\x8a\x08" + (2**62).to_bytes(8, "little")):  # fmt: skip
        for count in (1, -1):
            parts = pickled.split(four)
            changed = (
                parts[0] + number + parts[1] + four + parts[2]
                if count == 1
                else parts[0] + four + parts[1] + number + parts[2]
            )
            for data in (changed, number.join(parts)):
                rewrite_pickle(path, data)
                for mmap in (False, True):
                    with contextlib.suppress(CheckpointError):
                        safe_load.read(path, mmap=mmap)["a"].sum()
