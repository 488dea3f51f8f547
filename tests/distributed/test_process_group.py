"""What torch's process groups are asked for: their backends, their time-out, and their end."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fitkit.core.errors import ConfigurationError
from fitkit.distributed import process_group


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("gloo", {"cpu": "gloo", "cuda": "gloo"}),
        ("cuda:gloo", {"cuda": "gloo"}),
        ("cpu:gloo,cuda:gloo", {"cpu": "gloo", "cuda": "gloo"}),
    ],
)
def test_backends_of_a_group(backend, expected, group):
    group(backend)
    assert process_group.backends() == expected


def test_errors_of_collectives_are_told_apart():
    broken = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error")
    assert process_group.is_raised_by_group(broken)
    assert process_group.is_raised_by_group(dist.DistBackendError("NCCL error"))
    assert not process_group.is_raised_by_group(RuntimeError("mat1 and mat2 shapes"))


def test_host_tensors_travel_beside_a_group_that_takes_none(group):
    group("cuda:gloo")
    tensor = torch.ones(2)
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(tensor)
    side = process_group.new_host_group(None, {})
    dist.all_reduce(tensor, group=side)
    process_group.destroy(side)
    process_group.destroy(side)  # as when the program has destroyed everything
    assert dist.is_initialized()


def options_of(group, device):
    return group._get_backend(torch.device(device)).options


def test_the_time_out_of_groups(group):
    default = group("cpu:gloo,cuda:gloo")
    process_group.set_timeout(timedelta(seconds=7))
    assert options_of(default, "cpu")._timeout == timedelta(seconds=7)
    assert options_of(default, "cuda")._timeout == timedelta(seconds=7)
    side = process_group.new_host_group(timedelta(seconds=3), {})
    assert options_of(side, "cpu")._timeout == timedelta(seconds=3)
    process_group.set_timeout(timedelta(seconds=5), side)
    assert options_of(side, "cpu")._timeout == timedelta(seconds=5)
    assert options_of(default, "cpu")._timeout == timedelta(seconds=7)


def test_a_time_out_that_torch_cannot_change(monkeypatch):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,xpu:xccl")
    with pytest.raises(ConfigurationError, match=r"timeout=60 cannot .* uses 'xccl'\."):
        process_group.set_timeout(timedelta(seconds=60))


class Group:
    """A group with backends for devices, which note what is done to them."""

    def __init__(self, config, log, name, **attributes):
        self.config, self.backends = config, {}
        for pair in config.split(","):
            device, _, kind = pair.partition(":")
            label = f"{name} {kind}"
            methods = {"abort": lambda label=label: log.append(f"abort {label}"), **attributes}
            self.backends[device] = SimpleNamespace(**methods)

    def _get_backend(self, device):
        if device.type not in self.backends:
            raise RuntimeError("No backend type associated")
        return self.backends[device.type]


@pytest.fixture
def groups(monkeypatch):
    """Pretends that these groups are registered, by name."""
    registered = {}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: group.config)
    world = SimpleNamespace(pg_names=registered)
    monkeypatch.setattr(dist.distributed_c10d, "_world", world)
    return registered


def test_device_backends_of_all_groups_are_aborted_between_brackets(groups):
    log = []
    brackets = {
        "_group_start": lambda: log.append("start"),
        "_group_end": lambda: log.append("end"),
    }
    groups[Group("cpu:gloo,cuda:nccl", log, "default", **brackets)] = "0"
    groups[Group("cpu:gloo,cuda:gloo", log, "beside")] = "1"
    groups[Group("cuda:nccl", log, "mesh", **brackets)] = "2"
    process_group.abort_device_backends()
    assert log == ["start", "abort mesh nccl", "abort default nccl", "end"]


def test_a_backend_that_torch_wrapped_for_debugging_is_aborted_itself(groups):
    log = []
    inner = SimpleNamespace(abort=lambda: log.append("inner"))
    groups[Group("cuda:nccl", log, "default", wrapped_pg=inner)] = "0"
    process_group.abort_device_backends()
    assert log == ["inner"]


def test_a_group_written_in_python_is_aborted_as_it_is(groups):
    log = []
    group = Group("sim:own", log, "default")
    group.backends, group.abort = {}, lambda: log.append("group")
    groups[group] = "0"
    process_group.abort_device_backends()
    assert log == ["group"]


def test_without_a_group_there_is_nothing_to_abort():
    process_group.abort_device_backends()
