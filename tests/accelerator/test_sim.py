"""The simulated accelerator: it computes as the CPU does, and refuses what a device would."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn


def test_it_computes_what_the_cpu_computes(accelerator):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    here = nn.Sequential(*layers)
    there = copy.deepcopy(here).to("sim")
    for model, device in ((here, "cpu"), (there, "sim")):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        inputs = torch.arange(2 * 2 * 6 * 6.0).reshape(2, 2, 6, 6).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    for name, tensor in here.state_dict().items():
        assert there.state_dict()[name].device == torch.device("sim:0")
        assert torch.equal(there.state_dict()[name].cpu(), tensor), name


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: torch.stack([x.sum(), y.sum()]),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x.matmul(y),
        lambda x, y: x.to("sim:1") + x,
    ],
)
def test_tensors_of_different_devices_do_not_meet(accelerator, mix):
    x = torch.ones(3, 3, device="sim")
    assert (x + torch.tensor(1.0)).sum().item() == 18.0, "a scalar of the host may"
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(x, torch.ones(3, 3))


def test_float64_is_refused_where_there_is_none(accelerator):
    x = torch.ones(3, device="sim")
    if accelerator.float64:
        assert x.double().dtype is torch.float64
        return
    for make in (lambda: x.double(), lambda: x.new_zeros(2, dtype=torch.float64)):
        with pytest.raises(TypeError, match="doesn't support"):
            make()
    with pytest.raises(TypeError, match="doesn't support"):
        torch.ones(2, dtype=torch.float64).to("sim")


def test_what_the_host_waits_for_is_noted(accelerator):
    x = torch.ones(3, device="sim")
    accelerator.waits.clear()
    y = (x * 2).sum() + 1
    assert accelerator.waits == []
    y.item()
    x.tolist()
    bool(x.sum() > 0)
    x.nonzero()
    x.cpu()
    torch.ones(2).to("sim")
    kinds = [kind for kind, _ in accelerator.waits]
    assert kinds[0] == "_local_scalar_dense"
    assert {"nonzero", "copy to the host", "copy to the device"} <= set(kinds)
    assert all("accelerator/test_sim.py" in line for _, line in accelerator.waits)


def test_a_copy_to_the_host_that_nobody_waits_for_holds_nothing_yet(accelerator):
    found = torch.ones(3, device="sim").to("cpu", non_blocking=True)
    assert found.isnan().all()
    torch.sim.synchronize()
    assert found.tolist() == [1.0] * 3
    assert [way for way, _, _ in accelerator.copies] == ["to the host"]
    accelerator.copies.clear()


def test_memory_that_changes_under_a_copy_is_noticed(accelerator):
    source = torch.ones(3).pin_memory()
    source.to("sim", non_blocking=True)
    source.zero_()
    torch.sim.synchronize()
    assert len(accelerator.overwritten) == 1
    accelerator.overwritten.clear()


def test_memory_is_counted(accelerator):
    gc.collect()  # what earlier tests left
    before = accelerator.allocated
    x = torch.ones(1000, device="sim")
    y, view = x + 1, x[:10]
    assert accelerator.allocated - before == 8000
    del x, y
    gc.collect()
    assert accelerator.allocated - before == 4000, "the view keeps all of it"
    del view
    assert accelerator.allocated == before


def test_each_device_draws_from_a_stream_of_its_own(accelerator):
    host = torch.get_rng_state()
    state = torch.sim.get_rng_state("sim:0")
    first = torch.randn(3, device="sim:0").tolist()
    torch.nn.functional.dropout(torch.ones(4, device="sim:1"))
    torch.sim.set_rng_state(state, "sim:0")
    assert torch.randn(3, device="sim:0").tolist() == first
    assert torch.equal(torch.get_rng_state(), host)


def test_pinned_memory_is_that_of_its_views_too(accelerator):
    pinned = torch.ones(4).pin_memory()
    assert pinned[1:].is_pinned()
    assert not torch.ones(4).is_pinned()


def test_it_is_available_while_it_is_switched_on(accelerator):
    assert torch.accelerator.is_available()
    assert torch.accelerator.device_count() == 2


def test_switched_off_it_is_not_available():
    assert not torch.accelerator.is_available()
