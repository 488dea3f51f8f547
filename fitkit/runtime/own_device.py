"""Each rank needs an accelerator of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fitkit.core.errors import ConfigurationError
from fitkit.runtime.world import World


def device_identity(device: torch.device) -> Hashable:
    """What tells an accelerator apart from the others of its machine, whatever its index is here.

    Its uuid where torch gives one; else its index, with the variables that decide which devices
    this process sees.
    """
    module: Any = torch.get_device_module(device)
    index = module.current_device() if device.index is None else device.index
    describe = getattr(module, "get_device_properties", None)
    uuid = str(getattr(describe(index), "uuid", "")) if describe is not None else ""
    if uuid.strip("0-"):  # a driver that knows none says zeros
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
    """Fail on every rank if two of them would compute on one accelerator; all have to call it.

    Args:
        world: the ranks.
        device: where this one computes; ranks on the CPU share it.
        identity: what tells a device apart from the others of its machine.
        machine: the name of this machine.

    Raises:
        ConfigurationError: two ranks share an accelerator.
    """
    if world.size == 1:
        return
    own = None if device.type in ("cpu", "meta") else (machine(), identity(device))
    users: dict[Any, list[int]] = {}
    names: list[str] = []
    for rank, (used, name) in enumerate(world.gather_all((own, str(device)))):
        names.append(name)
        if used is not None:
            users.setdefault(used, []).append(rank)
    for (host, _), ranks in users.items():
        if len(ranks) > 1:
            raise ConfigurationError(
                f"ranks {' and '.join(map(str, ranks))} share the device {names[ranks[0]]} of the "
                f"machine {host}, and each rank needs one of its own. Start no more processes per "
                f"machine than it has devices (torchrun --nproc-per-node), leave device=None so "
                f"that each rank takes its own, or pass device='cpu'."
            )
