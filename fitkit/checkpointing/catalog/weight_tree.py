"""Weights by module: number of parameters, size and types, summed over each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fitkit.core.formatting import dtype_name

_MAX_DEPTH = 12  # levels of modules that are listed


@dataclass
class WeightNode:
    """A module, or one tensor."""

    name: str  # dotted; empty for the whole model
    level: int  # how many modules it is in
    num_tensors: int = 0
    num_values: int = 0  # elements of its tensors
    size_bytes: int = 0
    dtypes: set[str] = field(default_factory=set)
    shape: tuple[int, ...] | None = None  # of a single tensor

    def add(self, tensor: Tensor) -> None:
        """Count a tensor."""
        self.num_tensors += 1
        self.num_values += tensor.numel()
        self.size_bytes += tensor.numel() * tensor.element_size()
        self.dtypes.add(dtype_name(tensor.dtype))


def weight_tree(weights: Mapping[str, Any], depth: int = _MAX_DEPTH) -> list[WeightNode]:
    """The whole model, then every module down to ``depth`` levels, and the tensors above.

    Tied weights count under each of their names.

    Args:
        weights: a state dict; values other than tensors are skipped.
        depth: levels; 0 for the whole model only.

    >>> import torch
    >>> [(node.name, node.num_values) for node in weight_tree(torch.nn.Linear(2, 1).state_dict())]
    [('', 3), ('weight', 2), ('bias', 1)]
    """
    levels = min(depth, _MAX_DEPTH)
    nodes: dict[tuple[str, ...], WeightNode] = {(): WeightNode("", 0)}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            continue
        parts = name.split(".", levels) if levels else []
        for level in range(min(levels, len(parts)) + 1):
            keys = tuple(parts[:level])
            node = nodes.setdefault(keys, WeightNode(".".join(keys), level))
            node.add(tensor)
            if node.name == name:
                node.shape = tuple(tensor.shape)
    # the names of one module need not be next to each other in a state dict
    order = {keys: number for number, keys in enumerate(nodes)}
    in_order = sorted(nodes, key=lambda keys: [order[keys[:n]] for n in range(len(keys) + 1)])
    return [nodes[keys] for keys in in_order]


def weight_tree_within(weights: Mapping[str, Any], max_lines: int) -> list[WeightNode]:
    """``weight_tree`` as deep as a number of lines allows, at least the outermost modules."""
    nodes = weight_tree(weights, 1)
    for depth in range(2, _MAX_DEPTH + 1):
        deeper = weight_tree(weights, depth)
        if len(deeper) > max_lines or len(deeper) == len(nodes):
            break
        nodes = deeper
    return nodes
