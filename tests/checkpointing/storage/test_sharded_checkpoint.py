"""Pieces written by several processes and read by any number, each its part."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fitkit import SaveError
from fitkit.checkpointing.storage import (
    atomic_write,
    is_checkpoint,
    safe_load,
    shard_folder,
    shard_index,
    sharded_checkpoint,
    single_or_sharded,
)
from fitkit.distributed.dtensor import local_tensor
from fitkit.distributed.world import World

CONTEXT = multiprocessing.get_context("forkserver")


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def content_of(number, rows=64):
    return {"a": torch.full((rows, 8), float(number)), "b": {"c": torch.arange(rows)}, "n": number}


def write(number, path, *also, rows=64):
    sharded_checkpoint.write(
        content_of(number, rows), path, also, world=World(), is_sharded=is_tensor
    )


def assert_holds(path, number, rows=64):
    single_or_sharded.verify(path)
    found = single_or_sharded.read(path)
    expected = content_of(number, rows)
    assert found["n"] == number
    assert torch.equal(found["a"], expected["a"])
    assert torch.equal(found["b"]["c"], expected["b"]["c"])


def folders(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


def litter(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(is_checkpoint.TEMP_SUFFIX)]


# ---- one process --------------------------------------------------------------------------------


def test_a_tensor_without_dimensions_is_read_again(tmp_path):
    content = {"scale": torch.tensor(2.5), "weight": torch.ones(4, 2)}
    path = tmp_path / "a.pth"
    sharded_checkpoint.write(content, path, (), world=World(), is_sharded=is_tensor)
    single_or_sharded.verify(path)
    found = single_or_sharded.read(path)
    assert found["scale"].shape == ()
    assert found["scale"].item() == 2.5


def test_each_save_has_a_folder_of_its_own_and_the_old_one_goes(tmp_path):
    path = tmp_path / "a.pth"
    seen = set()
    for number in range(3):
        write(number, path)
        (folder,) = folders(tmp_path)
        seen.add(folder.name)
        assert_holds(path, number)
    assert len(seen) == 3
    assert not litter(tmp_path)


def test_further_names_here_and_elsewhere_are_the_same_pieces(tmp_path):
    also = [tmp_path / "best.pth", tmp_path / "deep" / "er" / "c.pth"]
    write(1, tmp_path / "a.pth", *also)
    for path in also:
        assert path.samefile(tmp_path / "a.pth")
        assert_holds(path, 1)
    (own,), (theirs,) = (
        folders(tmp_path / "deep" / "er"),
        [one for one in folders(tmp_path) if one.name != "deep"],
    )
    assert all(one.samefile(theirs / one.name) for one in own.iterdir())
    write(2, tmp_path / "a.pth")
    for path in also:
        assert_holds(path, 1)
    assert_holds(tmp_path / "a.pth", 2)


def test_the_checkpoint_is_written_last_and_everything_before_it_is_durable(tmp_path, monkeypatch):
    calls = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_fsync(descriptor):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", lambda *a: (calls.append(("rename", "folder")), rename(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append(("replace", "file")), replace(*a)))
    write(1, tmp_path / "a.pth")
    kinds = [kind for kind, _ in calls]
    named = len(kinds) - 1 - kinds[::-1].index("rename")  # torch renames its own file before
    flushed = [name for kind, name in calls[:named] if kind == "fsync"]
    # pieces, their index, torch's file and the folder; then it gets its name; then the file
    assert flushed[0].endswith(".distcp")
    assert flushed[1] == shard_index.index_name(0)
    assert flushed[-2].startswith(".metadata")
    assert flushed[-1].endswith(is_checkpoint.TEMP_SUFFIX)
    assert kinds[named + 1 :] == ["fsync", "fsync", "replace", "fsync"]
    assert calls[-1] == ("fsync", tmp_path.name)


@contextlib.contextmanager
def largest_file(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 1000, 3000, 20_000])
def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(tmp_path, num_bytes):
    write(1, tmp_path / "a.pth")
    before = {path.name for path in tmp_path.iterdir()}
    problem = "large" if num_bytes == 0 else "rank 0 could not"
    with largest_file(num_bytes), pytest.raises(SaveError, match=rf"a\.pth.*{problem}"):
        write(2, tmp_path / "a.pth", rows=1000)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert_holds(tmp_path / "a.pth", 1)
    write(3, tmp_path / "a.pth")
    assert_holds(tmp_path / "a.pth", 3)


def test_a_full_disk_leaves_the_old_one_and_nothing_else(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        write(1, folder / "a.pth")
        before = {path.name for path in folder.iterdir()}
        with pytest.raises(SaveError) as caught:
            write(2, folder / "a.pth", rows=10_000)
        assert {path.name for path in folder.iterdir()} == before
        assert_holds(folder / "a.pth", 1)
        assert "No space left on device" in str(caught.value)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_path_that_cannot_be_written_is_a_save_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SaveError, match="could not save to"):
        write(1, tmp_path / "file" / "a.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SaveError, match="it is a folder"):
        write(1, tmp_path / "folder.pth")
    assert [path.name for path in folders(tmp_path)] == ["folder.pth"]


def test_nothing_that_is_a_piece_is_no_reason_to_fail(tmp_path):
    sharded_checkpoint.write({"n": 1}, tmp_path / "a.pth", world=World())
    single_or_sharded.verify(tmp_path / "a.pth")
    assert single_or_sharded.read(tmp_path / "a.pth") == {"n": 1}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0, 3),
        torch.zeros(1),
        torch.ones(5, 3).t(),
        torch.ones(6)[::2],
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]),
        torch.arange(4, dtype=torch.int8),
        torch.randn(3, dtype=torch.float16),
        torch.randn(4).to(torch.float8_e4m3fn),
    ],
    ids=lambda one: f"{one.dtype}-{tuple(one.shape)}",
)
def test_tensors_of_all_kinds_come_back(tmp_path, tensor):
    sharded_checkpoint.write({"a": tensor}, tmp_path / "a.pth", world=World(), is_sharded=is_tensor)
    single_or_sharded.verify(tmp_path / "a.pth")
    found = single_or_sharded.read(tmp_path / "a.pth")["a"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(bytes_of(found), bytes_of(tensor))


def bytes_of(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def test_two_tensors_that_read_alike_are_two(tmp_path):
    content = {"a": {"b": torch.zeros(2)}, "a.b": torch.ones(2), 0: torch.full((2,), 2.0)}
    content["0"] = torch.full((2,), 3.0)
    sharded_checkpoint.write(content, tmp_path / "a.pth", world=World(), is_sharded=is_tensor)
    found = single_or_sharded.read(tmp_path / "a.pth")
    values = [found["a"]["b"], found["a.b"], found[0], found["0"]]
    assert [float(value[0]) for value in values] == [0.0, 1.0, 2.0, 3.0]


# ---- a process that dies ------------------------------------------------------------------------


def save_for_ever(folder):
    number = 1
    while True:
        write(number, folder / "a.pth", folder / "sub" / "b.pth", rows=2000)
        number += 1


@pytest.fixture
def in_a_process():
    """Runs a function elsewhere; what is left of it is killed."""
    CONTEXT.set_forkserver_preload(["fitkit.checkpointing.storage.sharded_checkpoint"])
    started = []

    def start(function, *args):
        process = CONTEXT.Process(target=function, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
    forkserver = multiprocessing.forkserver._forkserver
    forkserver._stop()
    multiprocessing.resource_tracker._resource_tracker._stop()


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_one_is_whole(tmp_path, in_a_process):
    chance = random.Random(1)
    write(0, tmp_path / "a.pth", tmp_path / "sub" / "b.pth", rows=2000)
    left_behind, seen = 0, set()
    for _ in range(5):
        process = in_a_process(save_for_ever, tmp_path)
        before = (tmp_path / "a.pth").stat().st_ino
        while (tmp_path / "a.pth").stat().st_ino == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in (tmp_path / "a.pth", tmp_path / "sub" / "b.pth"):
            number = safe_load.read(path)["content"]["n"]
            seen.add(number)
            assert_holds(path, number, rows=2000)
        left_behind += bool(litter(tmp_path)) or len(folders(tmp_path)) > 2
    assert left_behind, "no process was killed inside a save"
    write(99, tmp_path / "a.pth", tmp_path / "sub" / "b.pth")
    assert len(folders(tmp_path)) == 2
    assert len(folders(tmp_path / "sub")) == 1
    assert not litter(tmp_path)
    assert not litter(tmp_path / "sub")


def save_some(folder, name, count):
    for number in range(count):
        write(number, folder / name)
        assert_holds(folder / name, number)


def test_two_runs_that_save_into_one_folder_leave_each_other_alone(tmp_path, in_a_process):
    processes = [in_a_process(save_some, tmp_path, f"{name}.pth", 8) for name in "ab"]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name in "ab":
        assert_holds(tmp_path / f"{name}.pth", 7)
    shard_folder.remove_orphans(tmp_path)
    assert len(folders(tmp_path)) == 2
    assert not litter(tmp_path)


# ---- several processes --------------------------------------------------------------------------


def joined(rank, size, folder):
    store = torch.distributed.FileStore(str(folder / f"store{size}"), size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    from fitkit.distributed.distributed_world import DistributedWorld
    from fitkit.distributed.rank_info import RankInfo

    return DistributedWorld(store, RankInfo(rank, size, rank, ""), {})


def spread(rows, world):
    mesh = init_device_mesh("cpu", (world.size,))
    whole = torch.arange(rows * 3.0).reshape(rows, 3)
    return {"a": distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None), "n": rows}


def write_together(rank, size, folder):
    world = joined(rank, size, folder)
    messages = []
    for rows in (7, 1, size):
        content, path = spread(rows, world), folder / f"{rows}.pth"
        if rank == 0:
            sharded_checkpoint.write(content, path, world=world)
        else:
            messages.append(sharded_checkpoint.write_own_shards(content, world))
    # the main process cannot write the file, then this one cannot write its part
    blocked = folder / "blocked.pth"
    blocked.mkdir(exist_ok=True)
    content = spread(7, world)
    if rank == 0:
        try:
            sharded_checkpoint.write(content, blocked, world=world)
        except SaveError as error:
            messages.append(str(error))
    else:
        messages.append(sharded_checkpoint.write_own_shards(content, world))
    if rank == size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    if rank == 0:
        try:
            sharded_checkpoint.write(content, folder / "7.pth", world=world)
        except SaveError as error:
            messages.append(str(error))
    else:
        messages.append(sharded_checkpoint.write_own_shards(content, world))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / f"told{rank}.json").write_text(json.dumps(messages))
    torch.distributed.destroy_process_group()


def read_together(rank, size, folder):
    world = joined(rank, size, folder)
    mesh = init_device_mesh("cpu", (size,))

    def empty(shape, dtype, device):
        whole = torch.empty(shape, dtype=dtype, device=device)
        return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)

    for rows in (7, 1, 3):
        found = single_or_sharded.read(folder / f"{rows}.pth", empty=empty)["a"]
        assert isinstance(found, DTensor)
        assert torch.equal(local_tensor(found), local_tensor(spread(rows, world)["a"]))
        assert torch.equal(found.full_tensor(), torch.arange(rows * 3.0).reshape(rows, 3))
    torch.distributed.destroy_process_group()


def run_together(in_a_process, function, size, folder):
    processes = [in_a_process(function, rank, size, folder) for rank in range(size)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.slow
def test_written_by_three_read_by_two_and_by_one(tmp_path, in_a_process):
    run_together(in_a_process, write_together, 3, tmp_path)
    for rows in (7, 1, 3):
        path = tmp_path / f"{rows}.pth"
        single_or_sharded.verify(path)
        whole = torch.arange(rows * 3.0).reshape(rows, 3)
        assert torch.equal(single_or_sharded.read(path)["a"], whole)
        single_or_sharded.convert(path, tmp_path / "whole.pth", sharded=False)
        assert torch.equal(torch.load(tmp_path / "whole.pth", weights_only=True)["a"], whole)
    messages = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(3)]
    assert "it is a folder" in messages[0][0]
    assert "rank 2 could not write its part: [Errno 27] File too large" in messages[0][1]
    assert messages[1] == messages[2] == [True, True, True, False, False]
    assert len(folders(tmp_path)) == 4  # of three checkpoints, and the one in the way
    assert not litter(tmp_path)
    run_together(in_a_process, read_together, 2, tmp_path)


# ---- conversion ---------------------------------------------------------------------------------


def test_to_shards_and_back_is_the_same_content(tmp_path):
    atomic_write.write(content_of(5), tmp_path / "one.pth")
    single_or_sharded.convert(tmp_path / "one.pth", tmp_path / "two.pth", sharded=True)
    single_or_sharded.convert(tmp_path / "two.pth", tmp_path / "three.pth", sharded=False)
    for name in ("one", "two", "three"):
        assert_holds(tmp_path / f"{name}.pth", 5)
    assert len(folders(tmp_path)) == 1
