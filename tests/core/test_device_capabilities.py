"""Which devices compute in float64, and which copy asynchronously."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fitkit.core.device_capabilities import accumulation_dtype, has_async_copies, has_float64


@pytest.mark.parametrize(
    ("name", "float64", "asynchronous"),
    [
        ("cpu", True, False),
        ("cuda", True, True),
        ("cuda:1", True, True),
        ("mps", False, False),
        ("meta", False, False),
    ],
)
def test_kinds_of_devices(name, float64, asynchronous):
    device = torch.device(name)
    assert has_float64(device) is float64
    assert has_async_copies(device) is asynchronous
    assert accumulation_dtype(device) is (torch.float64 if float64 else torch.float32)


@pytest.mark.parametrize("with_float64", [True, False, 1, 0])
def test_of_an_xpu_the_device_itself_is_asked(monkeypatch, with_float64):
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(has_fp64=with_float64)

    monkeypatch.setattr(torch.xpu, "get_device_properties", properties)
    device = torch.device("xpu:1")
    assert has_float64(device) is bool(with_float64)
    assert asked == [device]
    assert has_async_copies(device)
    assert accumulation_dtype(device).itemsize == (8 if with_float64 else 4)


def test_what_is_said_of_the_simulated_device_is_true(accelerator):
    device = torch.device("sim")
    assert has_async_copies(device)
    if has_float64(device):
        assert torch.ones(1, dtype=torch.float64, device=device).item() == 1
    else:
        with pytest.raises((TypeError, RuntimeError)):
            torch.ones(1, dtype=torch.float64, device=device)
    assert torch.ones(1, dtype=accumulation_dtype(device), device=device).item() == 1
