"""Walks over nested containers: tuples, lists, named tuples, mappings and dataclasses."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

TensorMap = Callable[[Tensor], Tensor]

# whether such a type is a Mapping takes Python a millisecond the first time
ATOMS = (type(None), bool, int, float, complex, str, bytes)


def is_sequence(value: Any) -> TypeGuard[tuple[Any, ...] | list[Any]]:
    """Whether ``value`` is a tuple or list of parts; a ``PackedSequence`` is one value."""
    return isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence)


def is_plain_dataclass(value: Any) -> bool:
    """Whether ``value`` is an instance of a dataclass that does not move itself with ``to``."""
    return is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "to")


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nesting with ``function(leaf)`` in place of each leaf.

    A ``PackedSequence`` is a leaf, because its lengths must stay on the CPU. A dataclass is copied
    if a field changes.
    """
    if isinstance(tree, (Tensor, PackedSequence)) or type(tree) in ATOMS:
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_leaves(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else rebuild_mapping(tree, mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_leaves(function, value) for value in tree])
    if is_plain_dataclass(tree):
        return _map_fields(function, tree)
    return function(tree)


def _map_fields(function: Callable[[Any], Any], tree: Any) -> Any:
    before = {field.name: getattr(tree, field.name) for field in fields(tree)}
    after = {name: map_leaves(function, value) for name, value in before.items()}
    if all(after[name] is value for name, value in before.items()):
        return tree
    mapped = copy.copy(tree)
    for name, value in after.items():
        object.__setattr__(mapped, name, value)  # it may be frozen
    return mapped


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
    """Every leaf of a nesting, in order; a dataclass is a leaf."""
    if isinstance(tree, (Tensor, PackedSequence)) or type(tree) in ATOMS:
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
