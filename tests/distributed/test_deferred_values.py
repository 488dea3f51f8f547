"""A module that is built without holding all of its values has the same ones in the end."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fitkit.distributed.deferred_values import MIN_BYTES, DeferredValues

MEMORY_RUN = Path(__file__).parent / "memory_run.py"
WIDE = 160  # a square of so many numbers is large enough to be freed


def built_both_ways(build):
    """The module as torch builds it, the deferred one, and what is still in memory of that."""
    torch.manual_seed(0)
    plain = build()
    drawn = torch.rand(3)
    torch.manual_seed(0)
    with DeferredValues() as values:
        deferred = build()
    assert torch.equal(torch.rand(3), drawn), "the stream goes on as it would have"
    values.restore_all_but(deferred)
    parameters = {name: it for name, it in deferred.named_parameters() if not is_lazy(it)}
    held = {name for name, it in parameters.items() if it.untyped_storage().nbytes()}
    before = torch.get_rng_state()
    values.restore(deferred.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    return plain, deferred, held


def assert_same(plain, deferred):
    found, expected = dict(deferred.state_dict()), dict(plain.state_dict())
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class Changed(nn.Module):
    """Values are changed when all are built, in ways in which users do it."""

    def __init__(self, change):
        super().__init__()
        self.first = nn.Linear(WIDE, WIDE)
        self.second = nn.Linear(WIDE, WIDE)
        self.third = nn.Linear(WIDE, WIDE)
        with torch.no_grad():
            self.seen = change(self)


CHANGES = {
    "nothing": lambda m: None,
    "filled again": lambda m: [nn.init.normal_(it.weight) for it in m.children()] and None,
    "scaled": lambda m: m.first.weight.mul_(0.5),
    "scaled data": lambda m: m.first.weight.data.mul_(0.5),
    "some rows": lambda m: m.first.weight[3:9].fill_(1.0),
    "some columns": lambda m: m.first.weight.t()[2].uniform_(),
    "a view": lambda m: m.first.weight.view(-1)[::7].zero_(),
    "truncated": lambda m: nn.init.trunc_normal_(m.first.weight, std=0.5),
    "kaiming": lambda m: nn.init.kaiming_normal_(m.second.weight),
    "with a mask of itself": lambda m: m.first.weight.masked_fill_(m.first.weight > 0, 2.0),
    "orthogonal": lambda m: nn.init.orthogonal_(m.first.weight),
    "from another": lambda m: m.first.weight.copy_(m.second.weight),
    "added": lambda m: m.first.weight.add_(m.second.weight, alpha=0.1),
    "from a list": lambda m: m.first.weight.copy_(torch.arange(WIDE * WIDE).view(WIDE, WIDE)),
    "a generator": lambda m: m.first.weight.normal_(generator=torch.Generator().manual_seed(3)),
    "tied": lambda m: setattr(m.third, "weight", m.first.weight),
    "data replaced": lambda m: setattr(m.first.weight, "data", m.second.weight.data * 2),
    "data shared": lambda m: setattr(m.first.weight, "data", m.second.weight.data),
    "read": lambda m: (float(m.first.weight.sum()), m.second.weight[3, 4].item()),
    "read as an array": lambda m: m.first.weight.numpy().sum(),
    "read as a list": lambda m: m.first.weight.tolist()[3][:4],
    "written as an array": lambda m: m.first.weight.numpy().fill(3.0),
    "copied": lambda m: setattr(m, "third", copy.deepcopy(m.first)),
    "copied and changed": lambda m: (
        setattr(m, "third", copy.deepcopy(m.first)),
        m.first.weight.mul_(3.0),
        None,
    )[-1],
    "another type": lambda m: m.first.double() and None,
    "halved and drawn": lambda m: (m.first.half(), m.first.weight.normal_(), None)[-1],
    "several steps": lambda m: m.first.weight.copy_(m.second.weight.t().double().sin() * 3),
    "by a small one": lambda m: m.first.weight.mul_(torch.linspace(0, 1, WIDE)),
    "by one that changes": lambda m: (
        m.first.weight.mul_(m.first.bias),
        m.first.bias.zero_(),
        m.second.weight.copy_(m.first.weight),
        m.first.weight.zero_(),
        None,
    )[-1],
    "times itself": lambda m: m.first.weight.mul_(m.first.weight),
    "from a part of an array": lambda m: m.first.weight.copy_(
        torch.from_numpy(np.ones((WIDE, 2 * WIDE), np.float32))[:1, :WIDE].expand(WIDE, WIDE)
    ),
    "drawn like another": lambda m: m.first.weight.copy_(torch.randn_like(m.second.weight)),
    "of drawn probabilities": lambda m: m.first.weight.bernoulli_(torch.rand(WIDE, WIDE)),
    "resized": lambda m: (m.first.weight.data.resize_(WIDE, WIDE // 2), None)[-1],
    "a loop that looks": lambda m: [m.first.weight.mul_(0.9) for _ in range(3)] and None,
    "drawn outside": lambda m: torch.randn(3).sum().item(),
    "pruned": lambda m: m.first.weight.where(m.first.weight > 0, torch.zeros(())).sum().item(),
    "loaded": lambda m: m.first.load_state_dict(m.second.state_dict()) and None,
}


@pytest.mark.parametrize("name", CHANGES)
def test_values_are_those_of_the_constructor(name):
    plain, deferred, held = built_both_ways(lambda: Changed(CHANGES[name]))
    assert_same(plain, deferred)
    if isinstance(plain.seen, (float, tuple, list)):
        assert deferred.seen == plain.seen
    assert len({it for it in held if it.endswith("weight")}) < 3, "nothing was freed"


class Holder(nn.Module):
    """Tensors of all kinds beside parameters of modules."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(WIDE, WIDE))
        self.drawn = nn.Parameter(torch.randn(WIDE, WIDE))
        self.scaled = nn.Parameter(torch.randn(WIDE, WIDE) * 0.02)
        self.doubles = nn.Parameter(torch.full((WIDE, WIDE), 0.1, dtype=torch.float64))
        self.register_buffer("mask", torch.ones(WIDE, WIDE).tril())
        self.register_buffer("table", torch.zeros(WIDE, WIDE), persistent=False)
        self.attribute = torch.ones(WIDE, WIDE)
        self.listed = [torch.rand(WIDE, WIDE)]
        big = torch.empty(2 * WIDE, WIDE).uniform_()
        self.upper, self.lower = nn.Parameter(big[:WIDE]), nn.Parameter(big[WIDE:])
        self.sparse = torch.eye(WIDE).to_sparse()
        self.inner = nn.ModuleDict({"a": nn.Embedding(WIDE, WIDE, padding_idx=3)})


def test_what_is_no_parameter_is_whole():
    plain, deferred, held = built_both_ways(Holder)
    assert_same(plain, deferred)
    for name in ("attribute", "table"):
        assert torch.equal(getattr(deferred, name), getattr(plain, name))
    assert torch.equal(deferred.listed[0], plain.listed[0])
    assert torch.equal(deferred.sparse.to_dense(), torch.eye(WIDE))
    assert not held & {"position", "doubles", "scaled", "upper", "lower"}
    shared = {it.untyped_storage().data_ptr() for it in (deferred.upper, deferred.lower)}
    assert len(shared) == 1


MODULES = {
    "transformer": lambda: nn.Transformer(128, 4, 2, 2, 256),
    "lstm": lambda: nn.LSTM(128, 128, 2, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(160, 4),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(64, 64, 3), nn.ConvTranspose2d(64, 64, 3)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDE, WIDE)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDE, WIDE)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(WIDE, WIDE)),
    "bilinear": lambda: nn.Bilinear(40, 40, 40),
    "lazy": lambda: nn.Sequential(nn.Linear(WIDE, WIDE), nn.LazyLinear(3)),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_torch(name):
    plain, deferred, _ = built_both_ways(MODULES[name])
    if any(map(is_lazy, plain.parameters())):
        plain, deferred = plain[0], deferred[0]
    assert_same(plain, deferred)


def test_small_tensors_stay():
    with DeferredValues() as values:
        small = [nn.Linear(4, 4) for _ in range(3)]
    assert all(it.weight.untyped_storage().nbytes() == 64 < MIN_BYTES for it in small)
    values.restore_all_but(nn.ModuleList(small))


def test_values_may_come_from_elsewhere():
    """Those of rank 0: then only memory is needed."""
    with DeferredValues() as values:
        module = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))
    assert module[0].weight.untyped_storage().nbytes() == 0
    values.restore(module.parameters(), with_values=False)
    assert module[0].weight.detach().zero_().sum() == 0
    assert module[0].weight.untyped_storage().nbytes() == 4 * WIDE * WIDE


def test_an_error_of_the_constructor_leaves_torch_as_it_was():
    with pytest.raises(ZeroDivisionError), DeferredValues():
        Changed(lambda module: 1 / 0)
    first, second = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
    assert first.weight.untyped_storage().nbytes() == second.weight.untyped_storage().nbytes() > 0


# ---- memory -------------------------------------------------------------------------------------

WHOLE, BLOCK = 336, 17  # MB of parameters in memory_run.py, and of one block
SLACK = 40  # MB for everything else: the C library, buffers of gloo, files


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_rank_never_holds_more_than_its_part_and_a_block(processes, launcher, tmp_path, kit):
    peaks = []
    for command in ([sys.executable], kit.torchrun(processes)):
        ended = launcher.run_command(
            tmp_path / f"{len(peaks)}", [*command, str(MEMORY_RUN), str(tmp_path)]
        )
        assert ended.code == 0, ended.output
        name = "one" if not peaks else "rank*"
        peaks.append([json.loads(it.read_text()) for it in tmp_path.glob(f"{name}.json")])
    (whole,), ranks = peaks
    assert whole["built"] >= WHOLE - BLOCK
    assert len(ranks) == processes
    part = WHOLE / processes
    for found in ranks:
        assert found["built"] <= part + BLOCK + SLACK, found
        # what is read from the file is there beside the model, until it is copied
        assert found["loaded"] <= 2 * part + BLOCK + SLACK, found
        assert found["initialized"] <= 2 * part + BLOCK + SLACK, found
