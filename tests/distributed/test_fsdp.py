"""A model spread over processes, as one of them can see it; several are in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Shard

from fitkit.distributed.distributed_world import DistributedWorld
from fitkit.distributed.dtensor import distribute_all_like, is_dtensor, local_tensor
from fitkit.distributed.fsdp import FSDPParallel
from fitkit.distributed.process_group import new_host_group
from fitkit.distributed.rank_info import RankInfo
from fitkit.distributed.world import World
from fitkit.runtime.host_staging import HostStaging

CPU = torch.device("cpu")


class Block(nn.Module):
    """A block with blocks inside."""

    def __init__(self, depth=0):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.inner = nn.ModuleList([Block(depth - 1)] if depth else [])

    def forward(self, x):
        x = self.linear(x).tanh()
        for block in self.inner:
            x = block(x)
        return x


class Model(nn.Module):
    """A list of blocks, an entry that has no parameters, and layers around it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([Block(1), nn.Tanh(), Block()])
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.fixture
def parallel(mesh):
    """The policy as it is by default."""
    return FSDPParallel(World(), CPU)


def gathered(model):
    return [name for name, part in model.named_modules() if isinstance(part, FSDPModule)]


def test_items_of_lists_are_gathered_one_at_a_time(parallel):
    model = Model()
    parallel.shard(model)
    assert gathered(model) == ["", "blocks.0", "blocks.0.inner.0", "blocks.2"]
    assert all(is_dtensor(parameter) for parameter in model.parameters())


def test_kinds_of_blocks_may_be_named(mesh):
    model = Model()
    FSDPParallel(World(), CPU, nn.Linear).shard(model)
    assert gathered(model) == [
        "",
        "first",
        "blocks.0.linear",
        "blocks.0.inner.0.linear",
        "blocks.2.linear",
        "last",
    ]
    model = Model()
    FSDPParallel(World(), CPU, (nn.Linear, Model)).shard(model)
    assert "" in gathered(model)


def test_a_model_without_lists_is_one(parallel):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    parallel.shard(model)
    assert gathered(model) == [""]


def test_it_computes_what_the_whole_model_does(parallel):
    torch.manual_seed(0)
    model, whole = Model().double(), Model().double()
    whole.load_state_dict(model.state_dict())
    parallel.shard(model)
    x = torch.randn(5, 3, dtype=torch.float64)
    for one in (model, whole):
        one(x).square().sum().backward()
    for (name, own), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(local_tensor(own.grad), theirs.grad, rtol=1e-12), name


def test_after_an_evaluation_parameters_are_spread_again(parallel):
    model = Model()
    parallel.shard(model)
    x = torch.randn(5, 3)
    with torch.no_grad():
        before = model(x)
    assert not before.requires_grad
    assert all(is_dtensor(parameter) for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert not model(x).any()
    model(x).sum().backward()


def test_types_to_gather_and_to_reduce_in(mesh):
    model = nn.Linear(3, 2)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(module.weight.dtype))
    FSDPParallel(World(), CPU, None, torch.bfloat16, torch.float32).shard(model)
    model(torch.randn(4, 3)).sum().backward()
    assert seen == [torch.bfloat16]
    assert model.weight.dtype is model.weight.grad.dtype is torch.float32


def test_copies_are_pieces_of_the_same_tensor(parallel):
    model = nn.Linear(3, 2)
    parallel.shard(model)
    copies = HostStaging()
    place = parallel.on_local_tensors(copies.reserve)
    content = {"weight": place(model.weight.detach()), "step": place(torch.tensor(3.0))}
    copies.fetch()
    copies.wait()
    copied = content["weight"]
    assert is_dtensor(copied)
    assert (copied.shape, copied.placements) == (model.weight.shape, model.weight.placements)
    assert local_tensor(copied).data_ptr() != local_tensor(model.weight).data_ptr()
    assert torch.equal(local_tensor(copied), local_tensor(model.weight))
    assert float(content["step"]) == 3.0
    with torch.no_grad():
        model.weight.zero_()
    assert local_tensor(copied).any()


def test_memory_of_copies_is_used_again(parallel):
    model = nn.Linear(3, 2)
    parallel.shard(model)
    copies, seen = HostStaging(), []
    for _ in range(3):
        seen.append(
            local_tensor(
                parallel.on_local_tensors(copies.reserve)(model.weight.detach())
            ).data_ptr()
        )
        copies.fetch()
    assert seen[0] == seen[1] == seen[2]


def test_a_piece_to_be_filled(parallel):
    piece = parallel.empty_dtensor((5, 2), torch.float64)
    assert (piece.shape, piece.dtype, piece.device.type) == ((5, 2), torch.float64, "cpu")
    assert piece.placements == (Shard(0),)


def test_frozen_parameters_stay_frozen(parallel):
    model = Model()
    model.first.requires_grad_(False)
    parallel.shard(model)
    model(torch.randn(2, 3)).sum().backward()
    assert model.first.weight.grad is None
    assert model.last.weight.grad is not None


def test_tied_weights_stay_tied(parallel):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    parallel.shard(model)
    assert model[1].weight is model[0].weight
    model(torch.randn(2, 3)).sum().backward()
    assert model[0].weight.grad is not None


def test_a_model_is_built_with_its_values_block_by_block(parallel):
    def build():
        torch.manual_seed(3)
        return nn.Sequential(nn.ModuleList(nn.Linear(160, 160) for _ in range(3)))

    model, whole = parallel.place(build, CPU), build()
    assert gathered(model) == ["", "0.0", "0.1", "0.2"]
    for (name, own), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert is_dtensor(own), name
        assert torch.equal(local_tensor(own), theirs), name


def test_what_is_built_whole_is_said_once(parallel, monkeypatch, caplog):
    monkeypatch.setattr("fitkit.distributed.fsdp._MANY_BYTES", 4 * 160 * 160)
    parallel.place(lambda: nn.Sequential(*(nn.Linear(160, 160) for _ in range(3))), CPU)
    assert not caplog.records
    ready = nn.Sequential(*(nn.Linear(160, 160) for _ in range(3)))
    parallel.place(lambda: ready, CPU)
    (record,) = caplog.records
    assert "GB of Sequential are whole on each rank until it is sharded" in record.message


def test_a_block_that_shares_a_parameter_outside_is_gathered_with_it(parallel):
    model = Model()
    model.blocks[2].linear.weight = model.blocks[0].linear.weight
    model.blocks[0].inner[0].linear.bias = model.blocks[0].linear.bias
    parallel.shard(model)
    assert gathered(model) == [""]
    model = Model()
    model.blocks[0].inner[0].linear.bias = model.blocks[0].linear.bias
    parallel.shard(model)
    assert gathered(model) == ["", "blocks.0", "blocks.2"]
    assert model.blocks[0].inner[0].linear.bias is model.blocks[0].linear.bias


# ---- a device -----------------------------------------------------------------------------------


@pytest.fixture
def on_device(accelerator, group):
    """The policy of a rank that computes on an accelerator."""
    group("cpu:gloo,sim:gloo")
    return FSDPParallel(World(), torch.device("sim", 0))


def test_a_checkpoint_is_read_on_the_host_and_goes_where_parameters_are(on_device):
    model = nn.Linear(3, 2).to("sim")
    on_device.shard(model)
    read = {}
    for name, own in model.state_dict().items():
        read[name] = on_device.empty_dtensor(tuple(own.shape), own.dtype)
        local_tensor(read[name]).fill_(5.0)
        assert (local_tensor(read[name]).device.type, local_tensor(own).device.type) == (
            "cpu",
            "sim",
        )
    model.load_state_dict(distribute_all_like(read, model.state_dict()))
    for parameter in model.parameters():
        assert parameter.device_mesh.device_type == local_tensor(parameter).device.type == "sim"
        assert local_tensor(parameter).eq(5.0).all()


def test_a_model_is_moved_block_by_block(on_device):
    def build():
        torch.manual_seed(3)
        model = nn.Sequential(nn.ModuleList([nn.Linear(160, 160)]), nn.BatchNorm1d(160))
        model.register_buffer("table", torch.arange(5))
        return model

    model, whole = on_device.place(build, torch.device("sim", 0)), build()
    for name, own in model.state_dict().items():
        assert local_tensor(own).device.type == "sim", name
        assert torch.equal(local_tensor(own).cpu(), whole.state_dict()[name]), name


def test_copies_for_a_checkpoint_are_pieces_on_the_host(on_device):
    model = nn.Linear(3, 2).to("sim")
    on_device.shard(model)
    copied = on_device.on_local_tensors(lambda tensor: tensor.cpu())(model.weight.detach())
    assert copied.device_mesh.device_type == local_tensor(copied).device.type == "cpu"
    assert (copied.shape, copied.placements) == (model.weight.shape, model.weight.placements)
    moved = on_device.on_local_tensors(torch.clone)(model.weight.detach())
    assert moved.device_mesh.device_type == local_tensor(moved).device.type == "sim"


def test_pieces_on_the_host_have_a_group_that_takes_them(group):
    """Where the default group is NCCL's alone, their collectives go through gloo."""
    group("cuda:gloo")
    world = DistributedWorld(None, RankInfo(0, 1, 0, "env://"), {}, new_host_group(None, {}))
    piece = FSDPParallel(world, CPU).empty_dtensor((3, 2), torch.float32)
    local_tensor(piece).fill_(1.0)
    assert piece.device_mesh.get_group() is world.group
    assert piece.full_tensor().eq(1.0).all()
    world.leave(is_ours=False)
