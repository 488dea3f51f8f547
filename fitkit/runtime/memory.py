"""Memory: when it has run out, and how to have it back."""

from __future__ import annotations

import gc

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


def free_memory() -> None:
    """Give back what nobody uses any more, also what torch keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
