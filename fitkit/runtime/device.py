"""Resolves devices and moves batches to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fitkit.core.device_capabilities import has_async_copies
from fitkit.core.errors import ConfigurationError
from fitkit.core.tree import map_leaves


def resolve_device(
    device: torch.device | str | int | None, local_rank: int | None = None
) -> torch.device:
    """The ``torch.device`` with its index; ``None`` is CUDA if there is any, else the CPU.

    MPS and XPU must be named, because they lack operations and types that programs rely on.

    Args:
        device: a device or its name; without an index it is the current device of that type.
        local_rank: index of this process on its machine, used as the index if there are several
            processes.

    Raises:
        ConfigurationError: torch does not know the device, or this machine does not have it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"device must be a torch.device or a name such as 'cpu' or 'cuda:0', received "
            f"{device!r}: {str(error).splitlines()[0]}"
        ) from error
    if resolved.type in ("cuda", "mps", "xpu"):
        is_available = torch.accelerator.is_available()
        present: Any = torch.accelerator.current_accelerator()
        if not is_available or present.type != resolved.type:
            raise ConfigurationError(
                f"device {str(resolved)!r} is not available on this machine: pass device='cpu', or "
                f"device=None to take what there is."
            )
        if resolved.index is not None and resolved.index >= torch.accelerator.device_count():
            raise ConfigurationError(
                f"device {str(resolved)!r} does not exist: this machine has "
                f"{torch.accelerator.device_count()} of that kind."
            )
    index: int | None = resolved.index
    if index is not None or resolved.type in ("cpu", "meta"):
        return resolved
    count = torch.accelerator.device_count()
    if local_rank is not None and count:
        return torch.device(resolved.type, local_rank % count)
    current = getattr(torch.get_device_module(resolved), "current_device", lambda: 0)
    return torch.device(resolved.type, current())


def make_current(device: torch.device) -> None:
    """Make ``device`` the current device, for code that does not name one."""
    if device.type in ("cpu", "meta"):
        return
    module = torch.get_device_module(device)
    if hasattr(module, "set_device"):  # MPS has only one device
        module.set_device(device)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors, and other leaves that have ``to`` (graphs), on ``device``.

    Only copies from pinned memory to CUDA or XPU are asynchronous, on the current stream. A copy to
    the host would return memory that is not filled yet, and MPS reads pageable memory after it may
    have changed.
    """
    # skip the walk in the common case that nothing has to move
    if type(batch) is Tensor and batch.device == device:
        return batch
    if type(batch) in (list, tuple):
        for part in batch:
            if type(part) is not Tensor or part.device != device:
                break
        else:
            return type(batch)(batch)
    return map_leaves(lambda leaf: _move(leaf, device), batch)


def _move(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Tensor) and leaf.device == device:
        return leaf
    if not callable(getattr(leaf, "to", None)):
        return leaf
    is_known = isinstance(leaf, (Tensor, PackedSequence))
    if is_known and has_async_copies(device) and leaf.is_pinned():
        return leaf.to(device, non_blocking=True)
    return leaf.to(device)


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The floating type of the module's parameters; torch's default if it has none."""
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def device_name(device: torch.device) -> str:
    """The name of a device, with the model of a GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
