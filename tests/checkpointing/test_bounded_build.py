from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError
from fitkit.checkpointing.bounded_build import bounded_build
from fitkit.checkpointing.storage import atomic_write, safe_load


class Layers(nn.Module):
    def __init__(self, number: int, kind: str) -> None:
        super().__init__()
        layer = nn.Linear(1000, 1000)
        make = {"new": lambda: nn.Linear(1000, 1000), "copy": lambda: copy.deepcopy(layer)}[kind]
        self.layers = nn.ModuleList(make() for _ in range(number))


class Mask(nn.Module):
    """Builds a large tensor of a small one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mask = torch.arange(size)[:, None] * torch.arange(size)


def old(size: int) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.Tensor(size, size))
    return module


TOO_LARGE = {
    "a layer": lambda: nn.Linear(80_000, 80_000),
    "an embedding": lambda: nn.Embedding(10**10, 64),
    "a convolution": lambda: nn.Conv2d(3, 8, 100_000),
    "many layers": lambda: Layers(10**9, "new"),
    "many copies": lambda: Layers(10**9, "copy"),
    "a product": lambda: Mask(10**6),
    "an old constructor": lambda: old(10**6),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_far_larger_than_its_weights_is_not_built(kind, device):
    if (kind, device) == ("an old constructor", "meta"):
        return  # torch makes it on the CPU
    refused = pytest.raises(CheckpointError, match=r"take more than .* in the file take 4.0 KiB")
    with refused, bounded_build({"weight": torch.zeros(1024)}), torch.device(device):
        TOO_LARGE[kind]()


ORDINARY = {
    "linear": lambda: nn.Linear(300, 300),
    "recurrent": lambda: nn.LSTM(64, 64, 2),
    "transformer": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, batch_first=True), 3
    ),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(64, 64)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)),
    "normalized": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LazyLinear(3)),
    "mask": lambda: Mask(4000),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_an_ordinary_model_is_the_same_as_without_a_bound(kind):
    torch.manual_seed(0)
    expected = ORDINARY[kind]()
    after = torch.rand(3)
    torch.manual_seed(0)
    with bounded_build({"weight": torch.zeros(1)}):
        found = ORDINARY[kind]()
    assert torch.equal(torch.rand(3), after), "the same random numbers are drawn"
    for name, value in expected.state_dict().items():
        if not nn.parameter.is_lazy(value):
            assert torch.equal(found.state_dict()[name], value)


class ManyTemporaries(nn.Module):
    """Takes 2 GiB while it initializes its weight, at no time more than 64 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        for _ in range(64):
            self.parts = torch.zeros(1 << 23).split(1 << 20)  # views live as long as the storage
        del self.parts


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_the_constructor_drops_does_not_count(device):
    with bounded_build({"weight": torch.zeros(3)}), torch.device(device):
        ManyTemporaries()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_view_keeps_what_it_shows_alive(device):
    refused = pytest.raises(CheckpointError, match="take more than")
    with refused, bounded_build({"weight": torch.zeros(3)}), torch.device(device):
        _ = [torch.zeros(1 << 23)[:2].detach().view(-1) for _ in range(64)]


LOADS = """
import resource, sys, time
import torch, fitkit
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 30),) * 2)
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        fitkit.NNHandler.load(path)
    except fitkit.CheckpointError as error:
        print(error)
    assert time.process_time() - began < 10
"""


def test_a_small_file_cannot_make_load_take_gigabytes(tmp_path):
    path = tmp_path / "small.pth"
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=2)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.save(path)
    model, loss = safe_load.read(path), safe_load.read(path)
    model["model_kwargs"] = {"in_features": 80_000, "out_features": 80_000}
    loss["loss"] |= {"class": model["model_class"], "kwargs": model["model_kwargs"]}
    for name, state in (("model", model), ("loss", loss)):
        atomic_write.write(state, tmp_path / f"{name}.pth")
    found = subprocess.run(
        [sys.executable, "-c", LOADS, *(str(tmp_path / f"{n}.pth") for n in ("model", "loss"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("would take more than 23.8 GiB, but its weights in the file") == 2


def test_a_ready_module_may_have_any_size(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    fitkit.NNHandler(nn.Linear, in_features=2, out_features=2).save(path)
    monkeypatch.setattr("fitkit.checkpointing.bounded_build._MORE_BYTES", 0)
    with pytest.raises(CheckpointError, match="do not fit"):
        fitkit.NNHandler.load(path, model_class=nn.Linear(500, 500))
