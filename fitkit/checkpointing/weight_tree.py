"""Weights as people look at them: by module, with sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fitkit.checkpointing.skeleton import dtype_name

_DEEPEST = 12  # levels of modules that are told apart


@dataclass
class Branch:
    """A module, or one tensor.

    Attributes:
        name: the dotted name; empty for the whole.
        level: how many modules it is in.
        num_tensors: tensors in it.
        num_values: their elements.
        size_bytes: their size.
        dtypes: the types of their elements.
        shape: of a single tensor.
    """

    name: str
    level: int
    num_tensors: int = 0
    num_values: int = 0
    size_bytes: int = 0
    dtypes: set[str] = field(default_factory=set)
    shape: tuple[int, ...] | None = None

    def add(self, tensor: Tensor) -> None:
        """Count a tensor."""
        self.num_tensors += 1
        self.num_values += tensor.numel()
        self.size_bytes += tensor.numel() * tensor.element_size()
        self.dtypes.add(dtype_name(tensor.dtype))


def branches(weights: Mapping[str, Any], depth: int = _DEEPEST) -> list[Branch]:
    """The whole, then every module down to ``depth`` levels, and the tensors on the way.

    Tied weights count under each of their names.

    Args:
        weights: a state dict; what is no tensor in it is passed over.
        depth: levels, from 0: only the whole.

    >>> import torch
    >>> [(one.name, one.num_values) for one in branches(torch.nn.Linear(2, 1).state_dict())]
    [('', 3), ('weight', 2), ('bias', 1)]
    """
    levels = min(depth, _DEEPEST)
    tensors = {name: one for name, one in weights.items() if isinstance(one, Tensor)}
    found: dict[tuple[str, ...], Branch] = {(): Branch("", 0)}
    for name, tensor in tensors.items():
        parts = name.split(".", levels) if levels else []
        for level in range(min(levels, len(parts)) + 1):
            keys = tuple(parts[:level])
            branch = found.setdefault(keys, Branch(".".join(keys), level))
            branch.add(tensor)
            if branch.name == name:
                branch.shape = tuple(tensor.shape)
    # names of one module need not stand together in a state dict
    order = {keys: number for number, keys in enumerate(found)}
    return [
        found[keys]
        for keys in sorted(found, key=lambda keys: [order[keys[:n]] for n in range(len(keys) + 1)])
    ]


def fitting(weights: Mapping[str, Any], most_lines: int) -> list[Branch]:
    """``branches`` as deep as a number of lines allows, at least the outermost modules."""
    shown = branches(weights, 1)
    for depth in range(2, _DEEPEST + 1):
        deeper = branches(weights, depth)
        if len(deeper) > most_lines or len(deeper) == len(shown):
            break
        shown = deeper
    return shown
