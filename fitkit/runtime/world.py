"""World: the processes of a run. Today there is one; this file is where others will be spoken to.

Everything that has to be agreed between processes goes through a ``World``, so that code above it
never asks whether there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from fitkit.core.errors import ConfigurationError

Result = TypeVar("Result")


class World:
    """One process: every reduction is the identity.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum over the processes."""
        return sums

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` on the main process."""
        return action()


def find_world(use_distributed: bool | None, environment: Mapping[str, str] = os.environ) -> World:
    """The world that the launcher's environment describes.

    Args:
        use_distributed: ``None``: as the environment says; ``False``: one process whatever it says.
        environment: variables of the launcher (``WORLD_SIZE``, as torchrun sets it).

    Raises:
        ConfigurationError: more than one process is asked for, which this version cannot do, or
            what is asked for cannot be read.
    """
    if use_distributed is not None and not isinstance(use_distributed, bool):
        raise ConfigurationError(
            f"use_distributed must be True, False or None, received {use_distributed!r}."
        )
    if use_distributed is False:
        return World()
    size = _declared_size(environment)
    if use_distributed or size > 1:
        raise ConfigurationError(
            f"this version of fitkit trains in one process; it was asked for {max(size, 1)} "
            f"{'process' if size <= 1 else 'processes'} with use_distributed={use_distributed!r}. "
            f"Start one process, or pass use_distributed=False to train each one on its own."
        )
    return World()


def _declared_size(environment: Mapping[str, str]) -> int:
    declared = environment.get("WORLD_SIZE", "1").strip()
    if not declared.isdecimal() or int(declared) < 1:
        raise ConfigurationError(
            f"the environment variable WORLD_SIZE must be a whole number of at least 1, received "
            f"{declared!r}: unset it, or pass use_distributed=False."
        )
    return int(declared)
