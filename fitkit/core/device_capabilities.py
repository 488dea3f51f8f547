"""Which devices compute in float64, and which copy asynchronously."""

from __future__ import annotations

import torch

WITH_FLOAT64 = ("cpu", "cuda")
WITH_ASYNC_COPIES = ("cuda", "xpu")


def has_float64(device: torch.device) -> bool:
    """Whether ``device`` computes in float64: MPS does not, and not every XPU does."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type in WITH_FLOAT64


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The floating type of sums on ``device``: float64 where the device has it, else float32."""
    return torch.float64 if has_float64(device) else torch.float32


def has_async_copies(device: torch.device) -> bool:
    """Whether copies from pinned host memory to ``device`` overlap with computation."""
    return device.type in WITH_ASYNC_COPIES
