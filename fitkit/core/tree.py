"""Walks over nested containers: tuples, lists, named tuples and mappings."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

TensorMap = Callable[[Tensor], Tensor]

MAX_DEPTH = 100  # of nested containers in a checkpoint


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nesting with ``function(leaf)`` in place of each leaf.

    A ``PackedSequence`` is a leaf, because its lengths must stay on the CPU.
    """
    if isinstance(tree, PackedSequence):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_leaves(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else rebuild_mapping(tree, mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_leaves(function, value) for value in tree])
    return function(tree)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nesting with ``function(tensor)`` in place of each tensor; other leaves stay."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def rebuild_mapping(tree: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    """``mapped`` in the mapping type of ``tree``, or as a dict if the type cannot be filled."""
    if type(tree) is OrderedDict:
        ordered = OrderedDict(mapped)
        vars(ordered).update(vars(tree))  # a module's state dict stores its versions in _metadata
        return ordered
    if type(tree) is defaultdict:
        return defaultdict(tree.default_factory, mapped)
    try:
        rebuilt = type(tree)(mapped)  # type: ignore[call-arg]  # a Mapping need not take one
    except TypeError:
        return mapped
    # one that is a dataclass may have taken the dict as its first field
    is_whole = list(rebuilt) == list(mapped) and all(rebuilt[k] is v for k, v in mapped.items())
    return rebuilt if is_whole else mapped


def iterate_leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of a nesting, in order."""
    if isinstance(tree, PackedSequence):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from iterate_leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from iterate_leaves(value)
    else:
        yield tree


def iterate_tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a nesting, in order."""
    return (leaf for leaf in iterate_leaves(tree) if isinstance(leaf, Tensor))


def shapes_of(batch: Any) -> str:
    """The types and shapes of the tensors in a batch, for a message."""
    tensors = [f"{t.dtype} {tuple(t.shape)}".replace("torch.", "") for t in iterate_tensors(batch)]
    return ", ".join(tensors) or type(batch).__name__
