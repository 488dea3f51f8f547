"""Devices: what each kind can do, and tensors put back on the one where they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.tree import rebuild_mapping

Path = tuple[Hashable, ...]

DEEPEST = 100  # levels of containers in a checkpoint
_ATOMS = frozenset((type(None), bool, int, float, str))

WITH_FLOAT64 = ("cpu", "cuda")
WITH_PINNED_COPIES = ("cuda", "xpu")


def has_float64(device: torch.device) -> bool:
    """Whether ``device`` computes in float64: MPS does not, and not every XPU does."""
    kind = device.type
    if kind == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return kind in WITH_FLOAT64


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The floating type to add up in on ``device``."""
    return torch.float64 if has_float64(device) else torch.float32


def reads_pinned_memory(device: torch.device) -> bool:
    """Whether a copy from pinned host memory to ``device`` runs beside the computation."""
    return device.type in WITH_PINNED_COPIES


def is_on_host(tensor: Tensor) -> bool:
    """Whether reading ``tensor`` waits for nothing."""
    return tensor.device.type == "cpu"


def on_host(tensor: Tensor) -> Tensor:
    """A copy that takes no memory of an accelerator."""
    return tensor.detach().to("cpu", copy=True)


# ---- restored state -----------------------------------------------------------------------------


def paths_off_host(state: Any) -> list[list[Hashable]]:
    """Where in nested dicts and sequences the tensors of an accelerator are."""
    return [list(path) for path, tensor in _tensors(state) if not is_on_host(tensor)]


def moved(state: Any, paths: Iterable[Iterable[Hashable]], device: torch.device) -> Any:
    """``state`` with its tensors at ``paths`` on ``device``, the others as they are.

    Args:
        state: as it came from a checkpoint, on the host; it is not changed.
        paths: what ``paths_off_host`` found when it was saved.
        device: the owner's, which need not be the one that was saved.
    """
    chosen = {tuple(path) for path in paths}
    if not chosen:
        return state
    return _map_tensors(lambda path, one: one.to(device) if path in chosen else one, state)


def placed_like(state: Any, own: Any) -> Any:
    """``state`` with every tensor on the device of the one at the same place in ``own``."""
    devices = {path: tensor.device for path, tensor in _tensors(own)}
    return _map_tensors(lambda path, one: one.to(devices.get(path, one.device)), state)


def _tensors(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with its place, as deep as a checkpoint can hold it."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif len(path) < DEEPEST:
        is_mapping = isinstance(tree, Mapping)
        if is_mapping or isinstance(tree, (list, tuple, deque)):
            for key, item in tree.items() if is_mapping else enumerate(tree):
                if type(item) not in _ATOMS:  # most of a history
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
        # others may be made in a way of their own
        return type(tree)(*items) if hasattr(tree, "_fields") else tree
    return tree
