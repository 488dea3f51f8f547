"""Tensors of which each process has a part, as one process can see them."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fitkit.distributed.dtensor import (
    distribute_all_like,
    distribute_like,
    from_local,
    full_tensor,
    is_dtensor,
    local_tensor,
)
from fitkit.handler.optimizer_state import load_optimizer
from fitkit.runtime.weight_ema import WeightEMA

WHOLE = torch.arange(6.0).reshape(3, 2)


@pytest.fixture
def piece(mesh):
    """All three rows: there is nobody else."""
    return distribute_tensor(WHOLE.clone(), mesh, [Shard(0)])


def test_which_is_which(piece):
    assert is_dtensor(piece)
    assert not any(map(is_dtensor, (WHOLE, torch.nn.Parameter(WHOLE), None, 3, "text", [piece])))
    assert is_dtensor(torch.nn.Parameter(piece))


def test_what_is_here(piece):
    assert local_tensor(WHOLE) is WHOLE
    assert torch.equal(local_tensor(piece), WHOLE)
    assert not is_dtensor(local_tensor(piece))


def test_each_is_made_like_the_other(piece):
    assert distribute_like(WHOLE, WHOLE) is WHOLE
    assert distribute_like(piece, piece) is piece
    whole = distribute_like(piece, WHOLE)
    assert not is_dtensor(whole)
    assert torch.equal(whole, WHOLE)
    spread = distribute_like(WHOLE, piece)
    assert isinstance(spread, DTensor)
    assert spread.placements == piece.placements
    assert torch.equal(local_tensor(spread), WHOLE)


def test_what_does_not_fit_is_left_for_others_to_refuse(piece):
    other = torch.zeros(4)
    assert distribute_like(other, piece) is other
    assert distribute_like(piece, other) is piece


def test_types_stay(piece):
    assert distribute_like(WHOLE.to(torch.float64), piece).dtype is torch.float64


def test_by_name(piece):
    values = OrderedDict(a=WHOLE, b=piece, c=3, d=WHOLE, e=None)
    values._metadata = {"": {"version": 1}}
    own = {"a": piece, "b": WHOLE, "c": WHOLE, "e": WHOLE}
    found = distribute_all_like(values, own)
    assert type(found) is OrderedDict
    assert found._metadata == values._metadata
    assert is_dtensor(found["a"])
    assert not is_dtensor(found["b"])
    assert (found["c"], found["d"] is WHOLE, found["e"]) == (3, True, None)
    assert values["a"] is WHOLE  # they are as they were


def test_nothing_to_do():
    assert distribute_all_like({}, {}) == {}
    assert distribute_all_like({1: "x"}, {}) == {1: "x"}


def test_the_whole_of_either(piece):
    assert full_tensor(WHOLE) is WHOLE
    assert torch.equal(full_tensor(piece), WHOLE)
    assert not is_dtensor(full_tensor(piece))


# ---- parts of several ranks ---------------------------------------------------------------------


SHAPES = [(6, 2), (7, 2), (4, 2), (2, 2), (1, 1), (0, 2), (3, 0)]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_rank_cuts_the_part_that_is_its_own(rank, one_of_three):
    mesh = one_of_three("cpu", rank)
    for shape, placement in itertools.product(SHAPES, (Shard(0), Shard(1), Replicate())):
        tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        own = distribute_tensor(tensor + 100, mesh, [placement], src_data_rank=None)
        found = distribute_like(tensor, own)
        assert (found.shape, found.placements) == (own.shape, own.placements)
        assert torch.equal(local_tensor(found) + 100, local_tensor(own)), (shape, placement)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_part_does_not_keep_the_whole_in_memory(rank, one_of_three):
    mesh = one_of_three("cpu", rank)
    tensor = torch.ones(30, 2)
    found = distribute_like(tensor, distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None))
    assert local_tensor(found).untyped_storage().nbytes() == 10 * 2 * 4
    tensor.zero_()
    assert local_tensor(found).all()


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("size", [9, 7, 2])
def test_only_its_part_goes_to_the_device(rank, size, one_of_three, accelerator):
    mesh = one_of_three("sim", rank)
    tensor = torch.arange(size * 1000.0).reshape(size, 1000)
    rows = tensor.chunk(3)[rank] if rank < len(tensor.chunk(3)) else tensor[:0]
    own = DTensor.from_local(
        torch.zeros_like(rows, device="sim"),
        mesh,
        [Shard(0)],
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    accelerator.reset_peak()
    before = accelerator.peak
    found = distribute_like(tensor, own)
    assert accelerator.peak - before <= rows.numel() * 4
    assert (found.device_mesh, local_tensor(found).device.type) == (mesh, "sim")
    assert torch.equal(local_tensor(found).cpu(), rows)


# ---- the host and a device ----------------------------------------------------------------------


@pytest.fixture
def meshes(accelerator, group):
    """One of the host, one of the device."""
    group("cpu:gloo,sim:gloo")
    return init_device_mesh("cpu", (1,)), init_device_mesh("sim", (1,))


ROWS = Shard(0)


def on_the_device(tensor, mesh, placement=ROWS):
    return DTensor.from_local(tensor.to("sim"), mesh, [placement], run_check=False)


def assert_is_at_home(found, own, expected):
    assert found.device_mesh == own.device_mesh
    assert found.placements == own.placements
    assert local_tensor(found).device == local_tensor(own).device
    assert torch.equal(local_tensor(found).cpu(), expected)


def test_what_was_read_on_the_host_goes_where_parameters_are(meshes):
    host, device = meshes
    own = on_the_device(torch.zeros(3, 2), device)
    for read in (WHOLE, distribute_tensor(WHOLE.clone(), host, [Shard(0)])):
        found = distribute_like(read, own)
        assert_is_at_home(found, own, WHOLE)
        own.copy_(found)  # pieces on two meshes would not mix
        assert_is_at_home(own, own, WHOLE)


def test_what_is_on_the_device_may_go_to_the_host(meshes):
    host, device = meshes
    own = distribute_tensor(torch.zeros(3, 2), host, [Shard(0)])
    assert_is_at_home(distribute_like(on_the_device(WHOLE, device), own), own, WHOLE)
    assert_is_at_home(distribute_like(WHOLE.to("sim"), own), own, WHOLE)


def test_placements_are_those_of_the_parameter(meshes):
    host, device = meshes
    own = on_the_device(torch.zeros(3, 2), device, Shard(1))
    read = distribute_tensor(WHOLE.clone(), host, [Shard(0)])
    assert_is_at_home(distribute_like(read, own), own, WHOLE)


def test_what_is_where_it_belongs_stays(meshes):
    own = on_the_device(torch.zeros(3, 2), meshes[1])
    value = on_the_device(WHOLE, meshes[1])
    assert distribute_like(value, own) is value


def test_a_piece_of_another_shape_goes_along_with_its_own_placements(meshes):
    """As an optimizer's factors of a moment, which have the shape of no parameter."""
    host, device = meshes
    own = on_the_device(torch.zeros(3, 2), device)
    factor = distribute_tensor(torch.ones(1, 2), host, [Replicate()])
    found = distribute_like(factor, own)
    assert found.device_mesh == device
    assert found.placements == (Replicate(),)
    assert local_tensor(found).device == local_tensor(own).device


@pytest.mark.parametrize("form", ["whole", "piece"])
def test_moments_of_an_optimizer_go_where_its_parameters_are(form, meshes):
    host, device = meshes
    parameter = nn.Parameter(on_the_device(WHOLE.clone(), device))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, foreach=False)
    saved = optimizer.state_dict()
    moments = {"exp_avg": WHOLE + 1, "exp_avg_sq": WHOLE + 2}
    if form == "piece":
        moments = {key: distribute_tensor(one, host, [Shard(0)]) for key, one in moments.items()}
    saved["state"] = {0: {"step": torch.tensor(3.0), **moments}}
    load_optimizer(optimizer, saved)
    state = optimizer.state[parameter]
    assert_is_at_home(state["exp_avg"], parameter, WHOLE + 1)
    assert_is_at_home(state["exp_avg_sq"], parameter, WHOLE + 2)
    assert not is_dtensor(state["step"])
    assert (state["step"].device.type, state["step"].item()) == ("cpu", 3.0)
    parameter.grad = on_the_device(torch.ones(3, 2), device)
    optimizer.step()
    assert not torch.equal(local_tensor(parameter).detach().cpu(), WHOLE)
    assert state["step"].item() == 4.0


@pytest.mark.parametrize("form", ["whole", "piece"])
def test_averaged_weights_go_where_parameters_are(form, meshes):
    host, device = meshes
    model = nn.Linear(2, 3, bias=False)
    model.weight = nn.Parameter(on_the_device(torch.zeros(3, 2), device))
    average = WeightEMA(model, 0.5)
    read = WHOLE.clone() if form == "whole" else distribute_tensor(WHOLE, host, [Shard(0)])
    average.load_weights({"weight": read})
    assert_is_at_home(average.weights()["weight"], model.weight, WHOLE)


def test_a_piece_is_made_of_what_is_here(meshes):
    own = on_the_device(WHOLE, meshes[1])
    found = from_local(local_tensor(own).cpu(), own, meshes[0])
    assert (found.device_mesh, found.shape) == (meshes[0], own.shape)
    assert torch.equal(local_tensor(found), WHOLE)
