"""Moves tensors of nested state between the host and a device.

Checkpoints are read to the host. Everything that was on another device returns to one here.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError, describe
from fitkit.core.limits import MAX_DEPTH
from fitkit.core.tree import rebuild_mapping

Path = tuple[Hashable, ...]

_SCALARS = frozenset((type(None), bool, int, float, str))


def is_on_host(tensor: Tensor) -> bool:
    """Whether ``tensor`` is in host memory, so that reading it does not synchronize a device."""
    return tensor.is_cpu


def copy_to_host(tensor: Tensor) -> Tensor:
    """A detached copy in host memory."""
    return tensor.detach().to("cpu", copy=True)


def copied(value: Any, where: str) -> Any:
    """A deep copy of state; ``where`` names the state in the error.

    Raises:
        CheckpointError: it cannot be copied, and so not be saved.
    """
    try:
        return copy.deepcopy(value)
    except (TypeError, RuntimeError) as error:  # a generator, a tensor with a graph, ...
        raise CheckpointError(
            f"{where} cannot be saved: it is {describe(value)}, of which there is no copy "
            f"({error}). Save plain types that describe it instead."
        ) from error


def detached_copy(tensor: Tensor) -> Tensor:
    """A copy without gradient on the same device, which training does not change."""
    return tensor.detach().clone()


def device_tensor_paths(state: Any) -> list[list[Hashable]]:
    """The paths (keys and indices) of the tensors that are not on the host."""
    return [list(path) for path, tensor in _tensors(state) if not is_on_host(tensor)]


def move_paths(state: Any, paths: Iterable[Iterable[Hashable]], device: torch.device) -> Any:
    """A copy of ``state`` with the tensors at ``paths`` on ``device``; other tensors stay."""
    chosen = {tuple(path) for path in paths}
    if not chosen:
        return state
    return _map_tensors(lambda path, leaf: leaf.to(device) if path in chosen else leaf, state)


def place_like(state: Any, reference: Any) -> Any:
    """A copy of ``state``, each tensor on the device of the tensor at its path in ``reference``."""
    devices = {path: tensor.device for path, tensor in _tensors(reference)}
    return _map_tensors(lambda path, leaf: leaf.to(devices.get(path, leaf.device)), state)


def _tensors(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Tensors with their paths; unlike ``iterate_leaves`` it ends for a tree that holds itself."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif len(path) < MAX_DEPTH:
        is_mapping = isinstance(tree, Mapping)
        if is_mapping or isinstance(tree, (list, tuple, deque)):
            for key, item in tree.items() if is_mapping else enumerate(tree):
                if type(item) not in _SCALARS:  # a long history is mostly scalars
                    yield from _tensors(item, (*path, key))


def _map_tensors(function: Callable[[Path, Tensor], Any], tree: Any, path: Path = ()) -> Any:
    """The same nesting with ``function(path, tensor)`` in place of each tensor."""
    if isinstance(tree, Tensor):
        return function(path, tree)
    if isinstance(tree, Mapping):
        mapped = {key: _map_tensors(function, item, (*path, key)) for key, item in tree.items()}
        return mapped if type(tree) is dict else rebuild_mapping(tree, mapped)
    if isinstance(tree, (list, tuple, deque)):
        items = [_map_tensors(function, item, (*path, key)) for key, item in enumerate(tree)]
        if isinstance(tree, deque):
            return deque(items, tree.maxlen)
        if type(tree) in (list, tuple):
            return type(tree)(items)
        # the constructor of another subclass is unknown
        return type(tree)(*items) if hasattr(tree, "_fields") else tree
    return tree
