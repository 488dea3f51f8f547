"""Tensor parallelism: ranks that compute a batch together, beside those with other batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit import ConfigurationError
from fitkit.distributed import mesh as mesh_module
from fitkit.distributed.data_world import DataWorld
from fitkit.distributed.mesh import make_meshes
from fitkit.distributed.world import World

RUN = Path(__file__).parent / "tensor_parallel_run.py"
RESULTS = ("history", "weights", "samples")


def nothing(module, mesh):
    """Distributes no parameter."""


# ---- one process --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_mesh", "parallelize"),
    [(None, nothing), ((2, 2), nothing), ({"shard": 2}, nothing), ({"shard": 2, "tp": 2}, None)],
    ids=["no mesh", "sizes", "no dimension", "no function"],
)
def test_a_function_and_a_dimension_need_each_other(device_mesh, parallelize):
    with pytest.raises(ConfigurationError, match=r"need each other.*pass both"):
        fitkit.FSDP(device_mesh=device_mesh, parallelize=parallelize)


class Eight(World):
    """One of eight ranks."""

    size = 8

    def __init__(self, rank=0):
        self.rank = rank
        self.asked = []

    def subgroup(self, ranks):
        self.asked.append(ranks)
        return "group"


def test_who_has_other_batches():
    ranks, names = torch.arange(8).view(2, 2, 2), ("replicate", "shard", "tp")
    for rank, members in ((0, [0, 2, 4, 6]), (5, [1, 3, 5, 7])):
        world = Eight(rank)
        found = mesh_module._data_world(world, ranks, names)
        assert isinstance(found, DataWorld)
        assert (found.rank, found.size) == (members.index(rank), 4)
        assert world.asked == [[[0, 2, 4, 6], [1, 3, 5, 7]]]


def test_without_other_batches_there_is_one_rank():
    found = mesh_module._data_world(Eight(3), torch.arange(8).view(1, 8), ("shard", "tp"))
    assert type(found) is World
    world, names = Eight(3), ("replicate", "shard")
    assert mesh_module._data_world(world, torch.arange(8).view(2, 4), names) is world


def test_dimensions_for_the_function_come_last():
    with pytest.raises(ConfigurationError, match="in this order"):
        make_meshes(Eight(), torch.device("cpu"), {"tp": 2, "shard": 4})


def test_every_parameter_must_be_distributed(mesh):
    from fitkit.distributed.fsdp import FSDPParallel

    parallel = FSDPParallel(World(), torch.device("cpu"), parallelize=nothing)
    with pytest.raises(ConfigurationError, match=r"left 'bias', 'weight'.*Replicate"):
        parallel.shard(nn.Linear(2, 2))


# ---- several ------------------------------------------------------------------------------------

LAYOUTS = {"one": 1, "fsdp": 2, "1x2": 2, "2x2": 4, "2x1x2": 4}


@pytest.fixture(scope="module")
def run(shared_launcher, tmp_path_factory):
    """Runs a layout once, after those before it, whose files it goes on from."""
    out, done = tmp_path_factory.mktemp("parallel"), {}

    def run(case):
        processes = LAYOUTS[case.partition("-")[0]]
        if case not in done:
            shared_launcher.run_script(RUN, out, case, processes=processes)
            done[case] = [torch.load(out / f"{case}-{rank}.pth") for rank in range(processes)]
        return done[case]

    return run


@pytest.mark.ddp
@pytest.mark.slow
def test_layouts_follow_one_process_and_go_on_from_each_other(run, kit):
    (one,) = run("one")
    for layout in ("1x2", "2x2", "2x1x2", "fsdp"):
        for found in run(layout):
            for name in (*RESULTS, "evaluated", "predicted", "own"):
                kit.assert_close(found[name], one[name], 1e-9)
            resumed = {name: value for name, value in found.items() if "/" in name}
            assert {name.partition("/")[0] for name in resumed} >= {"one", layout}
            for name, value in resumed.items():
                assert set(value) == set(RESULTS), name
                for result in RESULTS:
                    kit.assert_close(value[result], one[result], 1e-9)


@pytest.mark.ddp
@pytest.mark.slow
def test_ranks_of_one_batch_draw_the_same(run, kit):
    (one,) = run("one-dropout")
    for found in run("1x2-dropout"):
        for name in RESULTS:
            kit.assert_close(found[name], one[name], 1e-9)
    for found in run("2x2-dropout"):
        kit.assert_equal(found["weights"], run("2x2-dropout")[0]["weights"])
        again = [value for name, value in found.items() if name.startswith("2x2-dropout/")]
        assert len(again) == 4
        for value in again:
            for name in RESULTS:
                kit.assert_equal({name: value[name]}, {name: found[name]})


@pytest.mark.ddp
@pytest.mark.slow
def test_what_would_be_wrong_is_refused(run):
    for found in run("2x2"):
        writer, unseeded = found["refused"]
        assert "PredictionWriter would write each batch once for each rank" in writer
        assert "must draw the same random numbers: pass seed=" in unseeded


@pytest.mark.ddp
@pytest.mark.slow
def test_parts_of_parts(run):
    placements = run("2x2")[0]["placements"]
    assert placements["layers.0.up.weight"] == "(_StridedShard(dim=0, sf=2), Shard(dim=0))"
    assert placements["layers.0.down.weight"] == "(Shard(dim=0), Shard(dim=1))"
