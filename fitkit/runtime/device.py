"""Where tensors live."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.errors import ConfigurationError
from fitkit.core.tree import map_leaves


def resolve_device(
    device: torch.device | str | int | None, local_rank: int | None = None
) -> torch.device:
    """The device that is meant; ``None`` is the accelerator if there is one, else the CPU.

    Args:
        device: what was asked for.
        local_rank: index of this process on its machine, which decides between its accelerators.

    Raises:
        ConfigurationError: torch does not know the device, or this machine does not have it.
    """
    if device is None:
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        kind = torch.accelerator.current_accelerator()
        if kind is None or local_rank is None:
            return torch.device("cpu" if kind is None else kind)
        return torch.device(kind.type, local_rank % torch.accelerator.device_count())
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(
            f"device must be a torch.device or a name such as 'cpu' or 'cuda:0', received "
            f"{device!r}: {str(error).splitlines()[0]}"
        ) from error
    if resolved.type in ("cuda", "mps", "xpu"):
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if kind is None or kind.type != resolved.type:
            raise ConfigurationError(
                f"device {str(resolved)!r} is not available on this machine: pass device='cpu', or "
                f"device=None to take what there is."
            )
        if resolved.index is not None and resolved.index >= torch.accelerator.device_count():
            raise ConfigurationError(
                f"device {str(resolved)!r} does not exist: this machine has "
                f"{torch.accelerator.device_count()} of that kind."
            )
    return resolved


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on ``device``; copies from pinned memory do not wait.

    Other leaves that know how to move (``leaf.to(device)``: packed sequences, graphs) are moved
    too; what has no ``to`` stays as it is.
    """
    if type(batch) in (list, tuple):  # the common case, without a walk: nothing has to move
        for part in batch:
            if type(part) is not Tensor or part.device != device:
                break
        else:
            return type(batch)(batch)
    return map_leaves(lambda leaf: _move(leaf, device), batch)


def _move(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Tensor):
        return leaf if leaf.device == device else leaf.to(device, non_blocking=True)
    return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf


def is_on_host(tensor: Tensor) -> bool:
    """Whether reading ``tensor`` waits for nothing."""
    return tensor.device.type == "cpu"


def reads_pinned_memory(device: torch.device) -> bool:
    """Whether a copy from pinned memory to ``device`` goes on beside the computation."""
    return device.type in ("cuda", "xpu")


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The floating type of the module's parameters; torch's default if it has none."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.get_default_dtype()


def device_name(device: torch.device) -> str:
    """What a device is called, with its make where torch knows it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
