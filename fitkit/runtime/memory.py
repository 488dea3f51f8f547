"""Memory: when it has run out, and how to have it back."""

from __future__ import annotations

import gc
from typing import Any

import torch

# What torch and the libraries below it say where they have no exception of their own for it.
_SAID_WHEN_FULL = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there was not enough memory, of a device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(said in text for said in _SAID_WHEN_FULL)


def free_pinned_memory() -> None:
    """Give pinned host memory that nobody uses any more back to the system; torch keeps it."""
    before_2_10 = getattr(torch._C, "_host_emptyCache", None)  # noqa: SLF001
    empty: Any = getattr(torch.accelerator, "empty_host_cache", before_2_10)
    if empty is not None:
        empty()


def free_memory() -> None:
    """Give back what nobody uses any more, also what torch keeps for later."""
    gc.collect()
    empty = getattr(
        torch.get_device_module(), "empty_cache", None
    )  # of the accelerator, or torch.cpu
    if empty is not None:
        empty()
