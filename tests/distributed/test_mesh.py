"""Hybrid sharding: copies of the model, each divided over some of the ranks."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import fitkit
from fitkit import ConfigurationError
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.distributed.distributed_world import DistributedWorld
from fitkit.distributed.mesh import make_meshes
from fitkit.distributed.process_group import new_host_group
from fitkit.distributed.rank_info import RankInfo
from fitkit.distributed.world import World

CPU = torch.device("cpu")

# ---- one process --------------------------------------------------------------------------------


class Four(World):
    """One of four ranks."""

    size = 4


@pytest.mark.parametrize("sizes", [(2, 3), (4, 4), (2, 2, 1), (), (3,), [1, 1]], ids=str)
def test_sizes_that_are_not_the_ranks_are_refused(sizes):
    with pytest.raises(ConfigurationError, match=r"as many ranks as the run, 4, .* product is 4"):
        make_meshes(Four(), CPU, sizes)


@pytest.mark.parametrize("wrong", [4, "2x2", (2, -2), (2.0, 2), (True, 4), {"tp": 4}], ids=str)
def test_what_is_no_mesh_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"sizes such as \(2, 4\), .* or a DeviceMesh"):
        fitkit.FSDP(device_mesh=wrong)


def test_one_copy_is_the_default(mesh):
    found = make_meshes(World(), CPU, None)
    assert found.model.mesh.tolist() == [0]
    assert found.host is found.model
    assert found.placements == (Shard(0),)


def test_a_mesh_of_the_program_is_taken(mesh):
    given = init_device_mesh("cpu", (1, 1), mesh_dim_names=("machines", "ranks"))
    found = make_meshes(World(), CPU, given)
    assert found.model is found.host is given
    assert found.placements == (Replicate(), Shard(0))


def test_a_mesh_on_another_device_is_refused(mesh):
    with pytest.raises(ConfigurationError, match="on 'cpu', the model on 'meta'"):
        make_meshes(World(), torch.device("meta"), mesh)


def test_groups_of_some_ranks_end_with_the_others(group):
    group("gloo")
    world = DistributedWorld(None, RankInfo(0, 1, 0, "env://"), {}, new_host_group(None, {}))
    own = world.subgroup([[0]])
    assert torch.distributed.get_process_group_ranks(own) == [0]
    world.set_timeout(timedelta(seconds=5))
    world.leave(is_ours=False)
    with pytest.raises(KeyError):
        torch.distributed.get_process_group_ranks(own)


# ---- two copies of two parts --------------------------------------------------------------------

RUN = ["--model", "blocks", "--train", "29", "--epochs", "2", "--accumulation", "3", "--clip", "1"]
RUN += ["--save-freq", "1", "--keep", "--ema", "0.9", "--save-by-hand", "validation"]
HYBRID = [*RUN, "--strategy", "fsdp-hybrid"]
OWN = ("drawn",)
CHANGED = ("drawn", "logs", "steps")
PLACES = ("003", "004_0")


@pytest.fixture(scope="module")
def whole(shared_launcher, tmp_path_factory):
    """One process."""
    return shared_launcher.run_cases(tmp_path_factory.mktemp("whole"), {"run": RUN}, processes=1)


@pytest.fixture(scope="module")
def hybrid(shared_launcher, tmp_path_factory):
    """Four processes."""
    out = tmp_path_factory.mktemp("hybrid")
    return shared_launcher.run_cases(out, {"run": HYBRID}, processes=4)


def resumed(launcher, out, source, how, processes):
    cases = {}
    for place in PLACES:
        (out / place).mkdir(parents=True)
        shutil.copy(source / "run" / "log.csv", out / place)
        file = source / "run" / "steps" / f"{place}.pth"
        cases[place] = [*how, "--resume-from", str(file)]
    return launcher.run_cases(out, cases, processes=processes)


@pytest.mark.ddp
@pytest.mark.slow
def test_four_follow_one(whole, hybrid, kit):
    expected = kit.result(whole / "run")
    for rank in range(4):
        kit.assert_close(kit.result(hybrid / "run", rank), expected, 1e-9, but=OWN)
        kit.assert_equal(kit.result(hybrid / "run", rank), kit.result(hybrid / "run"), but=OWN)


@pytest.mark.ddp
@pytest.mark.slow
def test_each_part_is_written_once(whole, hybrid, kit):
    for path in (hybrid / "run").rglob("*.pth"):
        if path.name.startswith("rank"):
            continue
        single_or_sharded.verify(path)
        reference = torch.load(path, weights_only=True)["__fitkit_shards__"]
        folder = path.parent / reference["folder"]
        assert set(reference["indexes"]) == {"index.0.json", "index.1.json"}
        assert {it.name for it in folder.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
        index = json.loads((folder / "index.1.json").read_text())
        weight = index["tensors"]["model_state_dict.head.weight"]
        assert [(it["offsets"], it["sizes"]) for it in weight["chunks"]] == [([1, 0], [1, 6])]
    for place in PLACES:
        own, theirs = (
            latest.read_full(it / "run" / "steps" / f"{place}.pth") for it in (hybrid, whole)
        )
        for key in ("model_state_dict", "optimizer_state_dict", "ema_state_dict"):
            kit.assert_close(own[key], theirs[key], 1e-9)


@pytest.mark.ddp
@pytest.mark.slow
def test_four_go_on_bit_for_bit(hybrid, launcher, tmp_path, kit):
    out = resumed(launcher, tmp_path, hybrid, HYBRID, 4)
    for place in PLACES:
        for rank in range(4):
            kit.assert_equal(
                kit.result(out / place, rank), kit.result(hybrid / "run", rank), but=OWN
            )


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "strategy", "processes"),
    [
        ("hybrid", "fsdp", 4),
        ("hybrid", "fsdp", 2),
        ("hybrid", "ddp", 2),
        ("hybrid", "auto", 1),
        ("whole", "fsdp-hybrid", 4),
    ],
)
def test_another_layout_goes_on(source, strategy, processes, launcher, tmp_path, request, kit):
    folder, expected = (
        request.getfixturevalue(source),
        kit.result(request.getfixturevalue("whole") / "run"),
    )
    out = resumed(launcher, tmp_path, folder, [*RUN, "--strategy", strategy], processes)
    for place in PLACES:
        for rank in range(processes):
            kit.assert_close(kit.result(out / place, rank), expected, 1e-9, but=CHANGED)


@pytest.mark.ddp
@pytest.mark.slow
def test_a_failure_of_one_ends_all_of_both_copies(launcher, tmp_path, kit):
    """Ranks of the other copy wait in a group that the failed one is not in."""
    ended = launcher.run(tmp_path / "out", *HYBRID, "--strike", "raise", 1, 4, processes=4)
    assert ended.code != 0
    struck = kit.struck_at(tmp_path / "out")
    for rank in (0, 2, 3):
        error = kit.error_of(tmp_path / "out", rank)
        assert error["type"] == "RankError"
        assert error["time"] - struck < 5.0
