"""RankInfo: rank and size from the environment of a launcher (torchrun, srun)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fitkit.core.errors import ConfigurationError


@dataclass(frozen=True)
class RankInfo:
    """One rank among ``size``, counted from 0, and its index on its machine."""

    rank: int
    size: int
    local_rank: int
    url: str  # for torch.distributed.rendezvous


def find_rank_info(environment: Mapping[str, str]) -> RankInfo | None:
    """The rank of this process; ``None`` if no launcher has started it."""
    if "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE", minimum=1)
        if size == 1:
            return RankInfo(0, 1, 0, "env://")
        rank = _number(environment, "RANK", below=size)
        return RankInfo(rank, size, _number(environment, "LOCAL_RANK", default=rank), "env://")
    # SLURM_NTASKS is also set in a batch script, SLURM_STEP_ID only in what srun starts
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        size = _number(environment, "SLURM_NTASKS", default=1, minimum=1)
        if size == 1:
            return None
        rank = _number(environment, "SLURM_PROCID", below=size)
        local_rank = _number(environment, "SLURM_LOCALID", default=0)
        return RankInfo(rank, size, local_rank, _slurm_url(environment))
    return None


def _slurm_url(environment: Mapping[str, str]) -> str:
    """The first machine of a Slurm step, with a port that is derived from the job's number."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "localhost")
    host = environment.get("MASTER_ADDR") or first_host(nodes)
    job = _number(environment, "SLURM_JOB_ID", default=0)
    port = environment.get("MASTER_PORT") or str(20000 + job % 20000)
    return f"tcp://{host}:{port}"


def first_host(nodes: str) -> str:
    """The first machine of a Slurm node list.

    >>> first_host("node[003-007,9],other"), first_host("alpha,beta")
    ('node003', 'alpha')
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ConfigurationError(
            f"the Slurm node list {nodes!r} cannot be parsed: set MASTER_ADDR to the first machine."
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
    digits = "" if text is None else text.strip()
    value = int(digits) if digits.isdecimal() else -1
    if value < minimum or (below is not None and value >= below):
        raise ConfigurationError(
            f"the environment variable {name} must be a whole number of at least {minimum}"
            f"{'' if below is None else f' and below {below}'}, received {digits!r}: start the "
            f"script with torchrun or srun, unset it, or pass use_distributed=False."
        )
    return value
