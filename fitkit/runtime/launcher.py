"""Which process this is among those that a launcher (torchrun, srun) has started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fitkit.core.errors import ConfigurationError


@dataclass(frozen=True)
class Place:
    """One process among others.

    Attributes:
        rank: its index, from 0.
        size: how many there are.
        local_rank: its index on its machine.
        url: where they meet, as ``torch.distributed`` takes it.
    """

    rank: int
    size: int
    local_rank: int
    url: str


def find_place(environment: Mapping[str, str]) -> Place | None:
    """The place of this process; ``None`` if no launcher has started it.

    Raises:
        ConfigurationError: a variable of the launcher is missing or no number.
    """
    if "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE", minimum=1)
        if size == 1:
            return Place(0, 1, 0, "env://")
        rank = _number(environment, "RANK", below=size)
        return Place(rank, size, _number(environment, "LOCAL_RANK", default=rank), "env://")
    # a batch script has SLURM_NTASKS too; only what srun starts is a step
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        size = _number(environment, "SLURM_NTASKS", default=1, minimum=1)
        if size == 1:
            return None
        rank = _number(environment, "SLURM_PROCID", below=size)
        local_rank = _number(environment, "SLURM_LOCALID", default=0)
        return Place(rank, size, local_rank, _meeting_point(environment))
    return None


def _meeting_point(environment: Mapping[str, str]) -> str:
    """Where the tasks of a Slurm step meet: its first machine, a port that derives from the job."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "localhost")
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    job = _number(environment, "SLURM_JOB_ID", default=0)
    port = environment.get("MASTER_PORT") or str(20000 + job % 20000)
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """The first machine of Slurm's list.

    >>> first_host("node[003-007,9],other"), first_host("alpha,beta")
    ('node003', 'alpha')
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ConfigurationError(
            f"Slurm's list of machines {nodes!r} cannot be read: set MASTER_ADDR to the first one."
        )
    return "".join(part or "" for part in match.groups())


def _number(
    environment: Mapping[str, str],
    name: str,
    *,
    default: int | None = None,
    minimum: int = 0,
    below: int | None = None,
) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    written = "" if text is None else text.strip()
    value = int(written) if written.isdecimal() else -1
    if value < minimum or (below is not None and value >= below):
        raise ConfigurationError(
            f"the environment variable {name} must be a whole number of at least {minimum}"
            f"{'' if below is None else f' and below {below}'}, received {written!r}: start the "
            f"script with torchrun or srun, unset it, or pass use_distributed=False."
        )
    return value
