"""What metrics get of outputs and targets: no graph, so that activations are not kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fitkit.core.tree import iterate_leaves, map_leaves

_UNCHANGED = (type(None), str, bytes, int, float, type, FunctionType, ModuleType, nn.Module)


def main_output(outputs: Any) -> Any:
    """The logits of a ``ModelOutput`` of transformers; other outputs as they are."""
    is_named = isinstance(outputs, Mapping) and hasattr(outputs, "logits")
    return outputs.logits if is_named else outputs


def detach(tree: Any) -> Any:
    """``tree`` with tensors that share memory with its own but have no graph.

    Containers and objects with attributes (dataclasses, distributions, packed sequences) are
    copied where they hold a tensor that has a graph; the model's own stay as they are.
    """
    if isinstance(tree, Tensor):
        return tree.detach()
    return map_leaves(_detach_leaf, tree)


def _detach_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if isinstance(leaf, _UNCHANGED):
        return leaf
    if isinstance(leaf, PackedSequence):
        return leaf._replace(data=leaf.data.detach())
    attributes = getattr(leaf, "__dict__", {})
    changed = {
        name: map_leaves(_detach_leaf, value)
        for name, value in attributes.items()
        if _has_graph(value)
    }
    if not changed:
        return leaf
    copied = copy.copy(leaf)
    vars(copied).update(changed)  # also for a frozen dataclass
    return copied


def _has_graph(value: Any, depth: int = 4) -> bool:
    """Whether a tensor in ``value``, or in attributes of attributes, has a graph."""
    for leaf in iterate_leaves(value):
        if isinstance(leaf, Tensor):
            if leaf.requires_grad:
                return True
        elif isinstance(leaf, PackedSequence):
            if leaf.data.requires_grad:
                return True
        elif depth and not isinstance(leaf, _UNCHANGED):
            inner = getattr(leaf, "__dict__", {})
            if any(_has_graph(part, depth - 1) for part in inner.values()):
                return True
    return False
