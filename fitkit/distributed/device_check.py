"""Checks that no two ranks use the same accelerator."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.world import World


def device_identity(device: torch.device) -> Hashable:
    """A value that identifies an accelerator within its machine.

    Its uuid, or else its index with the variables that select the devices a process sees.
    """
    module: Any = torch.get_device_module(device)
    index = module.current_device() if device.index is None else device.index
    describe = getattr(module, "get_device_properties", None)
    uuid = str(getattr(describe(index), "uuid", "")) if describe is not None else ""
    if uuid.strip("0-"):  # some drivers report zeros
        return uuid
    visible = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.endswith("_VISIBLE_DEVICES") or name == "ZE_AFFINITY_MASK"
    )
    return (index, *visible)


def require_own_device(
    world: World,
    device: torch.device,
    identity: Callable[[torch.device], Hashable] = device_identity,
    machine: Callable[[], str] = socket.gethostname,
) -> None:
    """Raise ``ConfigurationError`` on every rank if two share an accelerator; all must call it."""
    if world.size == 1:
        return
    used = None if device.type in ("cpu", "meta") else (machine(), identity(device))
    ranks_of: dict[Any, list[int]] = {}
    names: list[str] = []
    for rank, (used_there, name) in enumerate(world.gather_all((used, str(device)))):
        names.append(name)
        if used_there is not None:
            ranks_of.setdefault(used_there, []).append(rank)
    for (host, _), ranks in ranks_of.items():
        if len(ranks) > 1:
            raise ConfigurationError(
                f"ranks {' and '.join(map(str, ranks))} share the device {names[ranks[0]]} of the "
                f"machine {host}, and each rank needs one of its own. Start no more processes per "
                f"machine than it has devices (torchrun --nproc-per-node), leave device=None so "
                f"that each rank takes its own, or pass device='cpu'."
            )
