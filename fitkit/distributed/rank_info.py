"""RankInfo: rank and size from the environment of a launcher (torchrun, mpirun, srun)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fitkit.core.errors import ConfigurationError


@dataclass(frozen=True)
class RankInfo:
    """One rank among ``size``, counted from 0, and its index on its machine."""

    rank: int
    size: int
    local_rank: int
    url: str  # for torch.distributed.rendezvous


# Variables of each launcher for MPI: size, rank, rank on the machine, processes on the machine.
_MPI = (
    (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_SIZE", "PMI_RANK", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), "MPI_LOCALNRANKS"),
)


def find_rank_info(environment: Mapping[str, str]) -> RankInfo | None:
    """The rank of this process; ``None`` if no launcher has started it.

    torchrun's variables come first, then those of MPI, then Slurm's: ``mpirun`` inside of a Slurm
    job starts its own processes, which inherit the variables of the step that it runs in.
    """
    if "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE", minimum=1)
        if size == 1:
            return RankInfo(0, 1, 0, "env://")
        rank = _number(environment, "RANK", below=size)
        return RankInfo(rank, size, find_local_rank(environment, rank), "env://")
    for size_name, rank_name, local_names, local_size_name in _MPI:
        if size_name in environment and rank_name in environment:
            size = _number(environment, size_name, minimum=1)
            if size == 1:
                return None
            rank = _number(environment, rank_name, below=size)
            local = [name for name in local_names if name in environment]
            local_rank = _number(environment, local[0]) if local else _on_machine(rank)
            is_one_machine = _number(environment, local_size_name, default=0) == size
            url = _mpi_url(environment, is_one_machine=is_one_machine)
            return RankInfo(rank, size, local_rank, url)
    # SLURM_NTASKS is also set in a batch script, SLURM_STEP_ID only in what srun starts
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        # of the job, which may have more tasks than this step
        name = "SLURM_STEP_NUM_TASKS"
        name = name if name in environment else "SLURM_NTASKS"
        size = _number(environment, name, default=1, minimum=1)
        if size == 1:
            return None
        rank = _number(environment, "SLURM_PROCID", below=size)
        return RankInfo(rank, size, find_local_rank(environment, rank), _slurm_url(environment))
    return None


def find_local_rank(environment: Mapping[str, str], rank: int) -> int:
    """The index of this process on its machine: as the launcher says, else by the accelerators."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in environment:
            return _number(environment, name)
    return _on_machine(rank)


def _on_machine(rank: int) -> int:
    """``rank``, where launchers fill one machine after the other, one process per accelerator."""
    return rank % torch.cuda.device_count() if torch.cuda.is_available() else rank


def _mpi_url(environment: Mapping[str, str], *, is_one_machine: bool) -> str:
    """Where rank 0 serves the store; MPI's launchers do not say it."""
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    if "SLURM_JOB_ID" in environment:
        return _slurm_url(environment)
    if is_one_machine:  # all are children of one mpirun
        port = environment.get("MASTER_PORT") or str(20000 + os.getppid() % 12000)
        return f"tcp://localhost:{port}"
    raise ConfigurationError(
        "processes that mpirun started on several machines need to know where rank 0 is: set "
        "MASTER_ADDR to its machine and MASTER_PORT to a free port, as in "
        "mpirun -x MASTER_ADDR=first-machine -x MASTER_PORT=29500."
    )


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
            f"script with torchrun, mpirun or srun, unset it, or pass use_distributed=False."
        )
    return value
