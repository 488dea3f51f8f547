"""Each rank has an accelerator of its own, or all of them say in one sentence that it has not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.device_check import device_identity, require_own_device
from fitkit.distributed.world import World


class Ranks(World):
    """One of several ranks, which hears what the others say."""

    def __init__(self, rank, said):
        self.rank, self.size, self._said = rank, len(said), said

    def gather_all(self, value):
        self.own = value
        return self._said


def check(devices, identities, machines=None):
    """What each rank raises, or ``None``."""
    machines = machines or ["alpha"] * len(devices)
    said = [
        (None if device == "cpu" else (machine, identity), device)
        for device, identity, machine in zip(devices, identities, machines, strict=True)
    ]
    errors = []
    for rank, (device, identity, machine) in enumerate(
        zip(devices, identities, machines, strict=True)
    ):
        world = Ranks(rank, said)
        where = (lambda _, one=identity: one, lambda one=machine: one)
        try:
            require_own_device(world, torch.device(device), *where)
            errors.append(None)
        except ConfigurationError as error:
            errors.append(str(error))
        assert world.own == said[rank]
    return errors


@pytest.mark.parametrize(
    ("devices", "identities", "machines"),
    [
        (["cuda:0", "cuda:1"], ["GPU-a", "GPU-b"], None),
        (["cuda:0", "cuda:0"], ["GPU-a", "GPU-b"], None),  # each sees one of them alone
        (["cuda:0", "cuda:0"], [(0,), (0,)], ["alpha", "beta"]),
        (["cpu", "cpu"], [None, None], None),
        (["cpu", "cuda:0", "cpu"], [None, "GPU-a", None], None),
    ],
)
def test_ranks_with_devices_of_their_own(devices, identities, machines):
    assert check(devices, identities, machines) == [None] * len(devices)


@pytest.mark.parametrize(
    ("devices", "identities"),
    [
        (["cuda:0", "cuda:0"], ["GPU-a", "GPU-a"]),  # one name for all
        (["cuda:0", "cuda:1", "cuda:0"], ["GPU-a", "GPU-b", "GPU-a"]),  # more ranks than devices
    ],
)
def test_a_shared_device_is_the_same_sentence_on_every_rank(devices, identities):
    errors = check(devices, identities)
    first, last = 0, len(devices) - 1
    assert set(errors) == {
        f"ranks {first} and {last} share the device cuda:0 of the machine alpha, and each rank "
        f"needs one of its own. Start no more processes per machine than it has devices (torchrun "
        f"--nproc-per-node), leave device=None so that each rank takes its own, or pass "
        f"device='cpu'."
    }


def test_one_rank_asks_nobody():
    require_own_device(World(), torch.device("cuda:0"), identity=None)


@pytest.fixture
def cuda(monkeypatch):
    """CUDA, as far as it is asked: properties by index, and the current device."""
    uuids = {0: "aaaa-1", 1: "bbbb-2"}
    module = SimpleNamespace(
        current_device=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(uuid=uuids[index]),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(uuids=uuids, module=module)


def test_a_device_is_known_by_its_uuid(cuda):
    assert device_identity(torch.device("cuda:0")) == "aaaa-1"
    assert device_identity(torch.device("cuda")) == "bbbb-2"


@pytest.mark.parametrize("unknown", ["00000000-0000-0000-0000-000000000000", ""])
def test_without_a_uuid_by_its_index_among_those_that_are_seen(unknown, cuda, monkeypatch):
    cuda.uuids[0] = unknown
    assert device_identity(torch.device("cuda:0")) == (0,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert device_identity(torch.device("cuda:0")) == (0, ("CUDA_VISIBLE_DEVICES", "3"))
    del cuda.module.get_device_properties
    assert device_identity(torch.device("cuda:0")) == (0, ("CUDA_VISIBLE_DEVICES", "3"))
