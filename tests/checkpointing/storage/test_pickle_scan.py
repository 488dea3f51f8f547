"""Small files that would take a reader years, the stack, or all memory; what must still load."""

from __future__ import annotations

import collections
import contextlib
import gc
import random
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from fitkit.checkpointing.storage import pickle_scan, safe_load
from fitkit.checkpointing.storage.pickle_values import TrapError

BEGIN = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return b"c" + f"{module}\n{attribute}\n".encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: str = "0", numel: bytes = b"K\x04", kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + numel + b"tQ"


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


ORDERED = name("collections", "OrderedDict")


def view(shape: bytes, stride: bytes, offset: bytes = b"K\x00", memory: bytes = b"") -> bytes:
    arguments = (memory or storage(), offset, shape, stride, b"\x89", ORDERED + b")R")
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def nested_twice(levels: int) -> bytes:
    """A tuple that holds itself twice on each level, so that its hash takes 2**levels steps."""
    program = b"K\x01\x85" + put(0)
    for level in range(levels):
        program += get(level) + b"\x86" + put(level + 1)
    return program


def deep_tuple(levels: int) -> bytes:
    return b"K\x01" + b"\x85" * levels


HASHED = {
    "key": lambda key: b"}" + key + b"K\x00s",
    "keys": lambda key: b"}(" + key + b"K\x00u",
    "ordered": lambda key: ORDERED + b")R" + key + b"K\x00s",
    "pairs": lambda key: call(ORDERED, b"](" + key + b"K\x01\x86e"),
    "set": lambda key: call(name("__builtin__", "set"), b"](" + key + b"e"),
    "counter": lambda key: call(name("collections", "Counter"), b"}" + key + b"K\x00s"),
    "set of a tuple": lambda key: call(name("builtins", "set"), key + b"\x85"),
    "new": lambda key: name("builtins", "set") + b"](" + key + b"e\x85\x81",
}


def same_hash(count: int) -> bytes:
    """Keys that all have the hash 0: multiples of Python's modulus."""
    items = b"".join(number(k * sys.hash_info.modulus) + b"N" for k in range(2, count))
    return b"}(" + items + b"u"


def doubled(times: int) -> bytes:
    encode = name("_codecs", "encode")
    data = call(encode, text("aa"), text("latin1"))
    for _ in range(times):
        data = call(encode, data, text("hex"))
    return data


def copied(function: bytes, times: int) -> bytes:
    """A long list, copied again and again."""
    return (
        b"]("
        + b"N" * 20_000
        + b"e"
        + put(0)
        + b"]("
        + (function + get(0) + b"\x85R") * times
        + b"e"
    )


def chain(levels: int) -> bytes:
    """Tensors whose attributes hold the next."""
    inner = view(sizes(4), sizes(1))
    subclass, kind = name("torch._tensor", "_rebuild_from_type_v2"), name("torch", "Tensor")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    arguments = b"(" + storage() + b"K\x00" + sizes(4) + sizes(1) + b"\x89" + ORDERED + b")Rt"
    begin = subclass + b"(" + rebuild + kind + arguments + b"}" + text("a")
    return begin * levels + inner + b"stR" * levels


huge = 10**11
TRAPS = {
    **{f"2**60 steps as {kind}": make(nested_twice(60)) for kind, make in HASHED.items()},
    "a very deep key": HASHED["key"](deep_tuple(300_000)),
    "a very deep item": HASHED["set"](deep_tuple(300_000)),
    "a very deep tuple": deep_tuple(300_000),
    "one key many times": nested_twice(8) + b"](" + (b"}" + get(8) + b"Ns") * 10_000 + b"e",
    "keys of one hash": same_hash(2_000),
    "tuples of one hash": b"}(" + b"".join(
        number(k * sys.hash_info.modulus) + b"\x85N" for k in range(2, 2_000)) + b"u",
    "copies of a list": copied(name("builtins", "set"), 20_000),
    "copies of sizes": b"(" + b"K\x01" * 20_000 + b"t" + put(0) + b"](" + (
        name("torch", "Size") + get(0) + b"\x85R") * 20_000 + b"e",
    "a tensor in a tensor": chain(300),
    "a larger storage": view(sizes(4), sizes(1), memory=storage(numel=number(huge))),
    "another storage": view(sizes(4), sizes(1), memory=storage("7")),
    "a larger type": view(sizes(4), sizes(1), memory=storage(kind="DoubleStorage")),
    "two sizes": b"(" + storage(numel=b"K\x01") + storage() + b"t",
    "a larger view": view(sizes(huge), sizes(1)),
    "a later view": view(sizes(1), sizes(1), number(huge)),
    "a wider view": view(sizes(2), sizes(huge)),
    "a negative offset": view(sizes(1), sizes(1), number(-1)),
    "a negative size": view(sizes(-1), sizes(1)),
    "an expanded view": view(sizes(huge), sizes(0)),
    "fewer strides": view(sizes(2, 2), sizes(1)),
    "a quantized tensor": call(
        name("torch._utils", "_rebuild_qtensor"), storage(kind="QUInt8Storage"), b"K\x00",
        sizes(huge), sizes(1), b"N", b"\x89", b"}"),
    "a tensor on meta": call(
        name("torch._utils", "_rebuild_meta_tensor_no_storage"), b"N", sizes(2), sizes(1), b"\x89"),
    "sparse ones": b"](" + b"".join(
        call(name("torch._utils", "_rebuild_sparse_tensor"), b"N",
             b"(" + view(sizes(2**20), sizes(0)) + b"N" + sizes(9) + b"t") for _ in range(100)
    ) + b"e",
}  # fmt: skip
UNSAFE = {
    "bytes doubled": doubled(40),
    "another encoding": call(name("_codecs", "encode"), text("a" * 9), text("idna")),
    "a terabyte of zeros": call(name("builtins", "bytearray"), number(10**12)),
    "a new tensor": call(name("torch", "Tensor"), number(huge)),
    "another new tensor": name("torch", "FloatTensor") + b"(" + number(huge) + b"t\x81",
    "a new storage": call(name("torch.storage", "UntypedStorage"), number(huge)),
    "one as one name": call(name("torch", "storage.UntypedStorage"), number(huge)),
    "a wrapper": call(name("torch._utils", "_rebuild_wrapper_subclass"), b"N"),
    "attributes of a tensor": view(sizes(4), sizes(1)) + b"(" + storage() + b"K\x00" + sizes(
        huge) + sizes(1) + b"tb",
    "a method that is a number": ORDERED + b")R}" + text("items") + b"K\x01sb",
    "an append to a tuple": b")K\x01a",
    "a key in a list": b"]K\x01K\x01s",
    "LONG4": b"\x8b" + struct.pack("<I", 300) + bytes(299) + b"\x01",
    "POP": b"NN0",
    "INST": b"(i__builtin__\neval\n",
    "the next file": b"N" * 3 + b"\x94",
}  # fmt: skip


@pytest.fixture(scope="module")
def one_tensor(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "whole.pth"
    torch.save({"a": torch.arange(4.0)}, path)
    return path


def with_pickle(source: Path, path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(path, "w") as written:
        for info in read.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            written.writestr(info.filename, data if is_pickle else read.read(info))
    return path


def slowdown_now() -> float:
    """How much longer Python takes now than where the bounds were chosen; at least 1."""
    began = time.process_time()
    for _ in range(200_000):
        pass
    return max(1.0, (time.process_time() - began) / 0.0045)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", TRAPS)
def test_what_would_take_too_much_is_refused_at_once(one_tensor, tmp_path, kind):
    path = with_pickle(one_tensor, tmp_path / "a.pth", BEGIN + TRAPS[kind] + b".")
    before = slowdown_now()
    began = time.process_time()
    with pytest.raises(DamagedCheckpointError, match="cannot be used"):
        safe_load.read(path, mmap=True)
    with pytest.raises(DamagedCheckpointError, match="cannot be used"):
        safe_load.read_without_tensors(path)
    took = time.process_time() - began
    slowdown = max(before, slowdown_now())
    assert took < (0.3 + 10e-6 * path.stat().st_size) * slowdown, "more than its size is worth"


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", UNSAFE)
def test_what_no_checkpoint_needs_is_refused_at_once(one_tensor, tmp_path, kind):
    path = with_pickle(one_tensor, tmp_path / "a.pth", BEGIN + UNSAFE[kind] + b".")
    began = time.process_time()
    with pytest.raises(UnsafeCheckpointError, match="could run code"):
        safe_load.read(path)
    assert time.process_time() - began < 0.3


@pytest.mark.no_cover
def test_the_name_of_a_function_may_not_be_a_megabyte(one_tensor, tmp_path):
    """torch would look through its message about the name for a minute."""
    path = with_pickle(
        one_tensor, tmp_path / "a.pth", BEGIN + name("a" * 10**6, "b" * 10**6) + b"."
    )
    began = time.process_time()
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        safe_load.read(path)
    assert time.process_time() - began < 0.3


def test_all_that_a_counter_counts_is_hashed(one_tensor, tmp_path):
    """Pairs, too, which are keys and values for an ordered dict."""
    program = nested_twice(10) + call(
        name("collections", "Counter"), b"](K\x01" + get(10) + b"\x86e"
    )
    path = with_pickle(one_tensor, tmp_path / "a.pth", BEGIN + program + b".")
    with pytest.raises(DamagedCheckpointError, match="a key is made of more than a thousand"):
        safe_load.read(path)


@pytest.mark.parametrize(
    "program",
    [b"}K\x01" * 10**6 + b"N" + b"s" * 10**6, b"]" * 10**6 + b"a" * (10**6 - 1), b"(" * 10**6
     + b"t" * 10**6, b"K\x01" + b"\x85" * 10**6],
    ids=["dicts", "lists", "marks", "tuples"],
)  # fmt: skip
@pytest.mark.no_cover
def test_a_million_levels_are_refused_at_once(one_tensor, tmp_path, program):
    path = with_pickle(one_tensor, tmp_path / "a.pth", BEGIN + program + b".")
    began = time.process_time()
    with pytest.raises(DamagedCheckpointError, match="nested more than 100 levels"):
        safe_load.read(path)
    assert time.process_time() - began < 8.0, "under 1 without a tool that measures coverage"


def test_the_garbage_collector_does_not_look_through_what_is_scanned():
    """It took most of the time for a million levels."""
    collections_seen = []
    data = BEGIN + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    gc.callbacks.append(lambda phase, info: collections_seen.append(phase))
    try:
        pickle_scan.PickleMachine(data, pickle_scan._Checks({}, 10**6, 0)).run()
        without_pause = len(collections_seen)
        with pytest.raises(TrapError):
            pickle_scan.check_pickle(data, {}, 0)
        number = len(collections_seen) - without_pause
    finally:
        gc.callbacks.pop()
    assert number <= 4 < without_pause, "raising the error may start one"
    assert gc.isenabled()


EVERY_READER = """
import sys
from pathlib import Path
import torch, fitkit
from fitkit.checkpointing.catalog import latest, metadata
from fitkit.cli.all_commands import main

path = Path(sys.argv[1])


def fit(path):
    handler = fitkit.NNHandler(torch.nn.Linear, in_features=1, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(torch.nn.MSELoss())
    handler.fit((torch.ones(2, 1), torch.ones(2, 1)), epochs=1, resume=path, progress_bar=False)


for reader in (fitkit.NNHandler.load, latest.read_full, metadata.read_metadata, fit):
    try:
        reader(path)
    except fitkit.DamagedCheckpointError as error:
        assert "cannot be used" in str(error), error
    else:
        raise AssertionError(reader)
assert latest.find_latest([path.parent]).path is None
target = str(path.with_name("target"))
for arguments, code in (
    (["ls", str(path.parent)], 0),
    (["inspect", str(path)], 3),
    (["verify", str(path)], 1),
    (["verify", str(path.parent)], 1),
    (["diff", str(path), str(path)], 3),
    (["convert", str(path), target], 3),
    (["convert", str(path), target, "--sharded"], 3),
    (["export", str(path), "--format", "state-dict", "-o", target], 3),
    (["split", str(path)], 3),
    (["history", str(path)], 3),
    (["report", str(path.parent)], 3),
):
    try:
        main(arguments)
    except SystemExit as error:
        assert error.code == code, (arguments, error.code)
print("all refused")
"""


def test_every_reader_refuses_a_key_that_hashes_for_years(one_tensor, tmp_path):
    """In a process of its own, as a reader that does not would never end."""
    folder = tmp_path / "run"
    folder.mkdir()
    bomb = b"}" + text("model_state_dict") + HASHED["key"](nested_twice(60)) + b"s"
    path = with_pickle(one_tensor, folder / "a.pth", BEGIN + bomb + b".")
    assert path.stat().st_size < 3000
    found = subprocess.run(
        [sys.executable, "-c", EVERY_READER, str(path)], capture_output=True, text=True, timeout=60
    )
    assert found.stdout.endswith("all refused\n"), found.stdout + found.stderr


# ---- what torch reads in place of what was checked ----------------------------------------------


def test_a_second_pickle_is_refused(one_tensor, tmp_path):
    """torch ignores the case of names, and takes one of two records of one name."""
    path = tmp_path / "a.pth"
    for second in ("whole/data.pkl", "whole/DATA.PKL", "whole/Data.pkl", "other/data.pkl"):
        path.write_bytes(one_tensor.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, of the name that is there already
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(second, BEGIN + b"N.")
        with pytest.raises(DamagedCheckpointError, match="one name"):
            safe_load.read(path)


def test_another_file_before_the_archive_is_refused(one_tensor, tmp_path):
    """torch would read the file at the beginning, zipfile the archive at the end."""
    path = tmp_path / "a.pth"
    first = tmp_path / "first.pth"
    torch.save({"a": 1}, first, _use_new_zipfile_serialization=False)
    for before in (first.read_bytes(), one_tensor.read_bytes()):
        path.write_bytes(before + one_tensor.read_bytes())
        with pytest.raises(DamagedCheckpointError, match="does not begin with a record"):
            safe_load.read(path)


# ---- what is ordinary ---------------------------------------------------------------------------


def ordinary():
    weight = torch.randn(6, 4)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(weight).sum().backward()
    optimizer.step()
    key = tuple(range(30))
    tagged = torch.ones(2)
    tagged.note = "tensors may have attributes"
    return {
        "views": [weight, weight[1:], weight.T, weight[:, 1], weight[2:2], weight[0, 0]],
        "expanded": torch.ones(1).expand(1000),
        "types": [torch.zeros(3, dtype=t) for t in (
            torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16,
            torch.float64, torch.complex64, torch.complex128, torch.uint16, torch.uint64,
            torch.float8_e4m3fn)],
        "sparse": torch.eye(3).to_sparse(),
        "parameters": dict(model.named_parameters()),
        "tagged": tagged,
        "state": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "keys": [{key: 1, (1, ("a", (2.5, None))): 2, 0.5: 3, 2**62: 4} for _ in range(500)],
        "numbers": {number * 2**40: number for number in range(2000)},
        "floats": {(0.001 * number, number): number for number in range(2000)},
        "sets": [{1, "a", (2, 3)}, set(), set(range(5000))],
        "bytes": [b"abc", b"\xff\x00" * 300, bytearray(b"xyz"), bytearray()],
        "rest": [1j, torch.Size([2, 3]), torch.device("cpu"), torch.float32, -1, 2**2030, -0.0,
                 collections.Counter("hello"), collections.OrderedDict(a=1), "ä" * 100],
    }  # fmt: skip


def test_ordinary_content_of_every_kind_is_read_as_torch_reads_it(tmp_path):
    path = tmp_path / "a.pth"
    saved = ordinary()
    for name_of_part, part in saved.items():
        torch.save(part, path)
        found, expected = safe_load.read(path), torch.load(path, weights_only=True)
        assert repr(found) == repr(expected), name_of_part


def test_types_that_a_program_has_allowed_are_left_to_torch(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": nn.Identity()}, path)
    with pytest.raises(UnsafeCheckpointError):
        safe_load.read(path)
    with torch.serialization.safe_globals([nn.Identity, set]):
        assert isinstance(safe_load.read(path)["a"], nn.Identity)


@pytest.mark.filterwarnings("error")
def test_a_warning_of_torch_does_not_make_a_file_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"a": [1, 2.5, "x"]}, path, pickle_protocol=3)  # torch warns of it
    assert safe_load.read(path) == {"a": [1, 2.5, "x"]}
    real = torch.load

    def warn(*arguments, **options):
        warnings.warn("this will change", FutureWarning, stacklevel=2)
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "load", warn)
    assert safe_load.read(path) == {"a": [1, 2.5, "x"]}


@pytest.mark.no_cover
def test_the_scan_is_fast_beside_torch(tmp_path):
    """Of an optimizer with thousands of tensors."""
    path = tmp_path / "a.pth"
    moments = {n: {"step": torch.zeros(1), "average": torch.zeros(1)} for n in range(1000)}
    torch.save({"state": moments}, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("a/data.pkl")
        sizes = {i.filename.rpartition("/")[2]: i.file_size for i in archive.infolist()}

    def least(function):
        times = []
        for _ in range(3):
            began = time.process_time()
            function()
            times.append(time.process_time() - began)
        return min(times)

    scan = least(lambda: pickle_scan.check_pickle(data, sizes, 10**6))
    assert scan < least(lambda: torch.load(path, weights_only=True))


@pytest.mark.no_cover
def test_random_programs_end_in_our_errors_or_in_data(one_tensor, tmp_path):
    """Whatever operations follow each other, with the arguments of the traps above."""
    pieces = [*b"NK]})tase(uRQb\x85\x86\x87\x81\x88", *TRAPS.values(), *UNSAFE.values()]
    pieces = [bytes([one]) if isinstance(one, int) else one for one in pieces]
    pieces = [one for one in pieces if len(one) < 2000]
    rng = random.Random(0)
    for _ in range(300):
        program = b"".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        path = with_pickle(one_tensor, tmp_path / "a.pth", BEGIN + program + b".")
        began = time.process_time()
        with contextlib.suppress(CheckpointError):
            safe_load.read(path)
        assert time.process_time() - began < 1, program
