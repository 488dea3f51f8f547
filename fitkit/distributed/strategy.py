"""DDP and FSDP: the choice of how several ranks train one model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.distributed.parallel import DDPParallel, Parallel
from fitkit.distributed.sync_batchnorm import SyncBatchNormDDP
from fitkit.distributed.world import World


class Strategy:
    """How several ranks train one model: ``DDP``, ``FSDP``, or your own class.

    Attributes:
        timeout: of collectives, in seconds or as a ``timedelta``; ``None``: torch's default.
    """

    timeout: timedelta | float | None = None

    def bind(self, world: World, device: torch.device) -> Parallel:
        """The work of this rank."""
        raise NotImplementedError


class DDP(Strategy):
    """Every rank has the whole model; gradients are averaged (``DistributedDataParallel``).

    Args:
        timeout: seconds, or a ``datetime.timedelta``, after which an unfinished collective raises;
            ``None``: torch's default.
        sync_batchnorm: on several ranks, make each BatchNorm layer a ``SyncBatchNorm``, with the
            statistics of the batches of all ranks; needs an accelerator.
        **options: arguments of ``torch.nn.parallel.DistributedDataParallel``, such as
            ``find_unused_parameters=True`` for a model that does not use all parameters each time.

    Raises:
        ConfigurationError: an argument is unknown, or the timeout is invalid.

    >>> DDP(find_unused_parameters=True)
    DDP(find_unused_parameters=True)
    """

    def __init__(
        self,
        *,
        timeout: timedelta | float | None = None,
        sync_batchnorm: bool = False,
        **options: Any,
    ) -> None:
        self.timeout, self.sync_batchnorm = timeout, sync_batchnorm
        as_timedelta("DDP", timeout)
        known = set(inspect.signature(DistributedDataParallel.__init__).parameters)
        known -= {"self", "module", "process_group"}
        for name in options:
            if name not in known:
                raise ConfigurationError(
                    f"DDP takes the arguments of DistributedDataParallel ({listed(known)}) and "
                    f"timeout and sync_batchnorm, received {name!r}."
                    f"{did_you_mean(name, {*known, 'timeout', 'sync_batchnorm'})}"
                )
        if options.get("mixed_precision") is not None:
            raise ConfigurationError(
                "DDP's mixed_precision works only for calls of the wrapped model, and training "
                "steps may call any part of it: leave it out, and use fit(precision='bf16')."
            )
        self.options = options

    def __repr__(self) -> str:
        timeout = {} if self.timeout is None else {"timeout": self.timeout}
        sync = {"sync_batchnorm": True} if self.sync_batchnorm else {}
        options = {**timeout, **sync, **self.options}
        return f"DDP({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def bind(self, world: World, device: torch.device) -> Parallel:
        """The work of this rank."""
        if self.sync_batchnorm:
            return SyncBatchNormDDP(world, device, **self.options)
        return DDPParallel(world, **self.options)


@dataclass(frozen=True)
class FSDP(Strategy):
    """Each rank keeps a part of every parameter, gradient and moment (FSDP2, ``fully_shard``).

    Checkpoints are sharded too: each rank writes its part.

    Args:
        blocks: classes of modules whose parameters are gathered together, one module at a time;
            default: the items of every ``nn.ModuleList``. All other parameters form one more block.
        param_dtype: dtype in which parameters are gathered and used, such as ``torch.bfloat16``;
            default: their own.
        reduce_dtype: dtype in which gradients are reduced; default: ``param_dtype``.
        device_mesh: ``(copies, parts)``: so many copies of the model, each divided into so many
            parts (hybrid sharding), with one copy per machine for ``(machines, ranks of each)``;
            or a ``DeviceMesh`` of one or two dimensions, if the program made its process group
            itself. Default: one copy, divided over all ranks. With ``parallelize``: sizes by name,
            such as ``{"replicate": 1, "shard": 4, "tp": 2}``, or a mesh with such names.
        parallelize: ``fn(module, mesh)``, called before the model is sharded, for tensor
            parallelism: it calls ``parallelize_module(module, mesh["tp"], plan)``. Ranks that
            differ only in dimensions other than ``replicate`` and ``shard`` get the same batches.
            It must distribute every parameter, and the handler needs a seed.
        timeout: as in ``DDP``.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    blocks: type[nn.Module] | tuple[type[nn.Module], ...] | None = None
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    device_mesh: Any = None
    parallelize: Callable[[nn.Module, Any], Any] | None = None
    timeout: timedelta | float | None = None

    def __post_init__(self) -> None:
        as_timedelta("FSDP", self.timeout)
        blocks = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)
        for block in blocks if self.blocks is not None else ():
            if not (isinstance(block, type) and issubclass(block, nn.Module)):
                raise ConfigurationError(
                    f"FSDP's blocks must be classes of modules, such as a transformer's layer, "
                    f"received {block!r}."
                )
        for name in ("param_dtype", "reduce_dtype"):
            value = getattr(self, name)
            is_floating = isinstance(value, torch.dtype) and value.is_floating_point
            if value is not None and not is_floating:
                raise ConfigurationError(
                    f"FSDP's {name} must be a floating type such as torch.bfloat16 or None, "
                    f"received {value!r}."
                )

        if not _is_mesh(self.device_mesh):
            raise ConfigurationError(
                f"FSDP's device_mesh must be sizes such as (2, 4), two copies of the model with "
                f"four ranks each, or a DeviceMesh, received {self.device_mesh!r}."
            )
        has_others = bool(set(_names_of(self.device_mesh)) - {"replicate", "shard"})
        if (self.parallelize is not None) != has_others:
            raise ConfigurationError(
                f"FSDP's parallelize and a dimension for it in device_mesh need each other, "
                f"received parallelize={self.parallelize!r} and device_mesh={self.device_mesh!r}: "
                f'pass both, such as device_mesh={{"shard": 4, "tp": 2}} and a function.'
            )

    def bind(self, world: World, device: torch.device) -> Parallel:
        """The work of this rank."""
        from fitkit.distributed.fsdp import FSDPParallel  # a second of imports

        dtypes = (self.param_dtype, self.reduce_dtype)
        mesh = (self.device_mesh, self.parallelize)
        return FSDPParallel(world, device, self.blocks, *dtypes, *mesh)


def _is_mesh(value: Any) -> bool:
    if value is None or hasattr(value, "mesh_dim_names"):
        return True
    if not isinstance(value, (tuple, list, dict)):
        return False
    sizes = value.values() if isinstance(value, dict) else value
    has_names = not isinstance(value, dict) or "shard" in value
    return has_names and all(type(size) is int and size > 0 for size in sizes)


def _names_of(device_mesh: Any) -> tuple[str, ...]:
    names = getattr(device_mesh, "mesh_dim_names", device_mesh) or ()
    return tuple(names) if "shard" in names else ()


STRATEGIES: dict[str, type[Strategy]] = {"auto": DDP, "ddp": DDP, "fsdp": FSDP}


def as_timedelta(owner: str, timeout: timedelta | float | None) -> timedelta | None:
    """The timeout of ``owner`` for torch, or ``ConfigurationError`` if it is under 1 ms."""
    if timeout is None:
        return None
    converted: Any = timeout
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool):
        try:
            converted = timedelta(seconds=timeout)
        except (OverflowError, ValueError):  # infinite, NaN, or too large
            converted = None
    if not isinstance(converted, timedelta) or converted < timedelta(milliseconds=1):
        raise ConfigurationError(
            f"{owner}'s timeout must be a number of seconds above 0 or a datetime.timedelta, "
            f"received {timeout!r}: pass the longest time that a rank may wait for the others, "
            f"such as timeout=600, or leave it out for torch's default."
        )
    return converted


def as_strategy(strategy: Strategy | Parallel | str | None) -> Strategy | Parallel:
    """The strategy of an argument, or ``ConfigurationError``; a ``Parallel`` stays as it is."""
    if isinstance(strategy, Parallel):
        return strategy
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]()
    strategy = DDP() if strategy is None else strategy
    if not isinstance(strategy, Strategy):
        suggestion = did_you_mean(strategy, STRATEGIES) if isinstance(strategy, str) else ""
        raise ConfigurationError(
            f"strategy must be one of {listed(STRATEGIES)}, or an object such as "
            f"fitkit.DDP(find_unused_parameters=True) or fitkit.FSDP(), received {strategy!r}."
            f"{suggestion}"
        )
    return strategy


def timeout_of(strategy: Strategy | Parallel) -> timedelta | None:
    """The timeout of collectives that a strategy sets, if any."""
    if isinstance(strategy, Parallel):  # its timeout is already set
        return None
    return as_timedelta(type(strategy).__name__, strategy.timeout)


def make_parallel(
    strategy: Strategy | Parallel | str | None, world: World, device: torch.device
) -> Parallel:
    """The strategy, bound to the ranks and device of this process."""
    chosen = as_strategy(strategy)
    if isinstance(chosen, Parallel):
        return chosen
    return Parallel(world) if world.size == 1 else chosen.bind(world, device)
