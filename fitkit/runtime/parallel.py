"""How several processes train one model: what is done to the model, and to its gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.runtime.world import World

Place = Callable[[Tensor], Tensor]


class Parallel:
    """One process: nothing has to be done.

    Attributes:
        is_sharded: each process keeps only a part of every parameter.
        beside: the processes as a thread beside the program's speaks to them.
    """

    is_sharded = False

    def __init__(self, world: World) -> None:
        self.beside = world

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters over the processes, in place."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training."""
        return module

    def held_back(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with`` backward passes may leave gradients those of this process."""
        return nullcontext()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that backward passes held back."""

    def locally(self, place: Place) -> Place:
        """``place``, given what of each tensor is on this process."""
        return place

    def empty_piece(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be filled from a checkpoint, spread like parameters, on the CPU."""
        return torch.empty(shape, dtype=dtype)


class DataParallel(Parallel):
    """The model of one process among several, each of which has all of it; gradients are averaged.

    Args:
        world: the processes.
        options: arguments of ``DistributedDataParallel``.
    """

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world)
        self._world = world
        self._options = options

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training: its weights are those of the main process everywhere."""
        if self._world.size == 1 or not any(one.requires_grad for one in module.parameters()):
            return module
        return DistributedDataParallel(module, **self._options)

    def held_back(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with`` backward passes only add to this process's gradients."""
        if isinstance(model, DistributedDataParallel):
            context: AbstractContextManager[None] = model.no_sync()
            return context
        return nullcontext()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that backward passes held back.

        One that is missing here counts as zero; one that is missing everywhere stays missing.
        """
        if self._world.size == 1:
            return
        trained = [one for one in parameters if one.requires_grad]
        present = torch.tensor([float(one.grad is not None) for one in trained])
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        flat = [gradient.reshape(-1) for gradient in gradients]
        packed = self._world.sum(torch.cat([*flat, present.to(flat[0])]))
        *sums, counts = packed.split_with_sizes([*map(len, flat), len(trained)])
        for parameter, total, count in zip(trained, sums, counts.tolist(), strict=True):
            if count:
                parameter.grad = (total / self._world.size).view_as(parameter).to(parameter.dtype)


# ---- what a user chooses ------------------------------------------------------------------------


class Strategy:
    """How several processes train one model: ``DDP``, ``FSDP``, or a class of one's own."""

    def bind(self, world: World, device: torch.device) -> Parallel:
        """What this process does, one among several."""
        raise NotImplementedError


class DDP(Strategy):
    """Every process has the whole model; gradients are averaged (``DistributedDataParallel``).

    Args:
        **options: arguments of ``torch.nn.parallel.DistributedDataParallel``, such as
            ``find_unused_parameters=True`` for a model that does not use all parameters each time.

    Raises:
        ConfigurationError: it has no such argument.

    >>> DDP(find_unused_parameters=True)
    DDP(find_unused_parameters=True)
    """

    def __init__(self, **options: Any) -> None:
        known = set(inspect.signature(DistributedDataParallel.__init__).parameters)
        known -= {"self", "module", "process_group"}
        for name in options:
            if name not in known:
                raise ConfigurationError(
                    f"DDP takes the arguments of DistributedDataParallel ({listed(known)}), "
                    f"received {name!r}.{did_you_mean(name, known)}"
                )
        self.options = options

    def __repr__(self) -> str:
        return f"DDP({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

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

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    blocks: type[nn.Module] | tuple[type[nn.Module], ...] | None = None
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
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

        return FullySharded(world, device, self)


STRATEGIES: dict[str, type[Strategy]] = {"auto": DDP, "ddp": DDP, "fsdp": FSDP}


def make_parallel(
    strategy: Strategy | Parallel | str | None, world: World, device: torch.device
) -> Parallel:
    """What this process does to train with the others; one alone does nothing.

    Raises:
        ConfigurationError: there is no such strategy.
    """
    if isinstance(strategy, Parallel):
        return strategy
    if isinstance(strategy, str) and strategy in STRATEGIES:
        strategy = STRATEGIES[strategy]()
    strategy = DDP() if strategy is None else strategy
    if not isinstance(strategy, Strategy):
        suggestion = did_you_mean(strategy, STRATEGIES) if isinstance(strategy, str) else ""
        raise ConfigurationError(
            f"strategy must be one of {listed(STRATEGIES)}, or an object such as "
            f"fitkit.DDP(find_unused_parameters=True) or fitkit.FSDP(), received {strategy!r}."
            f"{suggestion}"
        )
    return Parallel(world) if world.size == 1 else strategy.bind(world, device)
