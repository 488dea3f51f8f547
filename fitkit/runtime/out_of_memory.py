"""Detects that memory ran out, and frees cached memory."""

from __future__ import annotations

import gc
from typing import Any

import torch

# Texts of RuntimeErrors that torch and its libraries raise where they have no OutOfMemoryError.
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` reports that a device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(text in message for text in _OUT_OF_MEMORY_TEXTS)


def free_pinned_memory() -> None:
    """Return unused pinned host memory, which torch caches, to the system."""
    in_2_11 = getattr(torch._C, "_host_emptyCache", None)  # noqa: SLF001
    empty: Any = getattr(torch.accelerator, "empty_host_cache", in_2_11)
    if empty is not None:
        empty()


def free_memory() -> None:
    """Free unreachable objects, and the cached memory of the accelerator."""
    gc.collect()
    empty = getattr(torch.get_device_module(), "empty_cache", None)
    if empty is not None:
        empty()
