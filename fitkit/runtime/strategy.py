"""Strategy: how several processes train one model, as a user chooses it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.runtime.parallel import DataParallel, Parallel
from fitkit.runtime.world import World


class Strategy:
    """How several processes train one model: ``DDP``, ``FSDP``, or your own class.

    Attributes:
        timeout: after which a collective fails; ``None``: torch's default.
    """

    timeout: timedelta | float | None = None

    def bind(self, world: World, device: torch.device) -> Parallel:
        """What this process does, one among several."""
        raise NotImplementedError


class DDP(Strategy):
    """Every process has the whole model; gradients are averaged (``DistributedDataParallel``).

    Args:
        timeout: seconds, or a ``datetime.timedelta``, after which a collective that has not ended
            raises; ``None``: torch's default.
        **options: arguments of ``torch.nn.parallel.DistributedDataParallel``, such as
            ``find_unused_parameters=True`` for a model that does not use all parameters each time.

    Raises:
        ConfigurationError: it has no such argument, or the time-out is none.

    >>> DDP(find_unused_parameters=True)
    DDP(find_unused_parameters=True)
    """

    def __init__(self, *, timeout: timedelta | float | None = None, **options: Any) -> None:
        self.timeout = timeout
        as_timedelta("DDP", timeout)
        known = set(inspect.signature(DistributedDataParallel.__init__).parameters)
        known -= {"self", "module", "process_group"}
        for name in options:
            if name not in known:
                raise ConfigurationError(
                    f"DDP takes the arguments of DistributedDataParallel ({listed(known)}) and "
                    f"timeout, received {name!r}.{did_you_mean(name, {*known, 'timeout'})}"
                )
        self.options = options

    def __repr__(self) -> str:
        options = (
            self.options if self.timeout is None else {"timeout": self.timeout, **self.options}
        )
        return f"DDP({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    def bind(self, world: World, device: torch.device) -> Parallel:
        """What this process does, one among several."""
        return DataParallel(world, **self.options)


@dataclass(frozen=True)
class FSDP(Strategy):
    """Every process keeps a part of each parameter, gradient and moment (FSDP2, ``fully_shard``).

    Checkpoints are sharded too: each process writes its part.

    Args:
        blocks: kinds of modules whose parameters are gathered together, one such module at a time;
            default: the items of every ``nn.ModuleList``. What is in none of them is gathered as
            one more.
        param_dtype: type that parameters are gathered and used in, such as ``torch.bfloat16``;
            default: their own.
        reduce_dtype: type that gradients are reduced in; default: that of ``param_dtype``.
        timeout: as in ``DDP``.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    blocks: type[nn.Module] | tuple[type[nn.Module], ...] | None = None
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    timeout: timedelta | float | None = None

    def __post_init__(self) -> None:
        as_timedelta("FSDP", self.timeout)
        kinds = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,)
        for kind in kinds if self.blocks is not None else ():
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise ConfigurationError(
                    f"FSDP's blocks must be classes of modules, such as a transformer's layer, "
                    f"received {kind!r}."
                )
        for name in ("param_dtype", "reduce_dtype"):
            value = getattr(self, name)
            floating = isinstance(value, torch.dtype) and value.is_floating_point
            if value is not None and not floating:
                raise ConfigurationError(
                    f"FSDP's {name} must be a floating type such as torch.bfloat16 or None, "
                    f"received {value!r}."
                )

    def bind(self, world: World, device: torch.device) -> Parallel:
        """What this process does, one among several."""
        from fitkit.runtime.sharding import FullySharded  # a second of imports

        return FullySharded(world, device, self.blocks, self.param_dtype, self.reduce_dtype)


STRATEGIES: dict[str, type[Strategy]] = {"auto": DDP, "ddp": DDP, "fsdp": FSDP}


def as_timedelta(owner: str, timeout: timedelta | float | None) -> timedelta | None:
    """A time-out as torch takes it.

    Args:
        owner: whose argument it is.
        timeout: seconds, or a ``timedelta``; ``None``: torch's default.

    Raises:
        ConfigurationError: it is not a time of at least a millisecond, the unit of torch.
    """
    if timeout is None:
        return None
    found: Any = timeout
    if isinstance(timeout, (int, float)) and not isinstance(timeout, bool):
        try:
            found = timedelta(seconds=timeout)
        except (OverflowError, ValueError):  # infinite, not a number, or more than there is
            found = None
    if not isinstance(found, timedelta) or found < timedelta(milliseconds=1):
        raise ConfigurationError(
            f"{owner}'s timeout must be a number of seconds above 0 or a datetime.timedelta, "
            f"received {timeout!r}: pass the longest time that a rank may wait for the others, "
            f"such as timeout=600, or leave it out for torch's default."
        )
    return found


def as_strategy(strategy: Strategy | Parallel | str | None) -> Strategy | Parallel:
    """The strategy that is meant; what is bound to ranks already stays as it is.

    Raises:
        ConfigurationError: there is no such strategy.
    """
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
    """The time-out of collectives that a strategy asks for; ``None``: it asks for none."""
    if isinstance(strategy, Parallel):  # it was applied when that was bound
        return None
    return as_timedelta(type(strategy).__name__, strategy.timeout)


def make_parallel(
    strategy: Strategy | Parallel | str | None, world: World, device: torch.device
) -> Parallel:
    """What this process does to train with the others; one alone does nothing.

    Raises:
        ConfigurationError: there is no such strategy.
    """
    chosen = as_strategy(strategy)
    if isinstance(chosen, Parallel):
        return chosen
    return Parallel(world) if world.size == 1 else chosen.bind(world, device)
