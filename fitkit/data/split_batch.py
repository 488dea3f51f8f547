"""Splits a batch into inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, default_collate

from fitkit.core.errors import DataError, describe, listed
from fitkit.core.tree import is_plain_dataclass, is_sequence
from fitkit.core.types import ModelType

INPUT_KEYS = ("inputs", "input", "x")
TARGET_KEYS = ("targets", "target", "labels", "label", "y")

Split = Callable[[Any], tuple[Any, Any]]


def make_split(model_type: ModelType) -> Split:
    """The function that splits a batch into ``(inputs, targets)`` for a model type."""
    return {
        ModelType.CLASSIFICATION: split_supervised,
        ModelType.REGRESSION: split_supervised,
        ModelType.GENERATIVE: split_generative,
        ModelType.SCORE_BASED: split_score_based,
    }[model_type]


def split_supervised(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a batch, or ``DataError``.

    A batch is a pair; a mapping, or a named tuple of more fields, with its targets under one of
    ``TARGET_KEYS``; or an object with such an attribute (a graph, a dataclass), which is the inputs
    as a whole. The inputs of a mapping are under one of ``INPUT_KEYS``; without such a key all
    other entries are inputs, passed by name.
    """
    if type(batch) in (tuple, list) and len(batch) == 2:  # most batches
        return batch[0], batch[1]
    if is_sequence(batch):
        names: tuple[str, ...] = getattr(batch, "_fields", ())
        target_keys = [name for name in names if name in TARGET_KEYS]
        if len(batch) == 2:
            is_swapped = len(target_keys) == 1 and target_keys[0] == names[0]
            return (batch[1], batch[0]) if is_swapped else (batch[0], batch[1])
        if len(target_keys) == 1:
            return split_supervised(dict(zip(names, batch, strict=True)))
    elif isinstance(batch, Mapping):
        target_keys = [key for key in TARGET_KEYS if key in batch]
        if len(target_keys) == 1:
            return _mapping_inputs(batch, target_keys[0]), batch[target_keys[0]]
        raise DataError(
            f"a batch that is a mapping needs its targets under exactly one of "
            f"{listed(TARGET_KEYS)}; received the keys {listed(map(str, batch))}. Rename the "
            f"key, or use set_train_step to handle the batch yourself."
        )
    elif is_object(batch):
        return batch, _targets_of_object(batch)
    raise DataError(
        f"a batch must be (inputs, targets), a pair, or a mapping; received {describe(batch)}. "
        f"For several inputs make the batch ((first, second), targets); for a model without "
        f"targets pass model_type='generative'; for anything else use set_train_step."
    )


def is_object(batch: Any) -> bool:
    """Whether a batch is an object of its own kind, such as a graph or a dataclass."""
    if isinstance(batch, (Tensor, PackedSequence, tuple, list, Mapping)):
        return False
    return is_plain_dataclass(batch) or callable(getattr(batch, "to", None))


def _targets_of_object(batch: Any) -> Any:
    found = [key for key in TARGET_KEYS if getattr(batch, key, None) is not None]
    if len(found) == 1:
        return getattr(batch, found[0])
    raise DataError(
        f"a {type(batch).__name__} as a batch needs its targets in exactly one attribute of "
        f"{listed(TARGET_KEYS)}, and has {listed(found)}: make the batch a pair (inputs, targets), "
        f"or use set_train_step to handle it yourself."
    )


def split_generative(batch: Any) -> tuple[Any, Any]:
    """The inputs, which are also the targets; other items are ignored."""
    inputs = split_inputs(batch)
    return inputs, inputs


def split_score_based(batch: Any) -> tuple[Any, Any]:
    """The whole batch, ``x`` or ``(x, *conditions)``, as inputs, without targets."""
    if isinstance(batch, (Tensor, tuple, list, Mapping)):
        return batch, None
    raise DataError(f"a score-based batch must hold tensors, received {describe(batch)}.")


def split_inputs(batch: Any) -> Any:
    """The inputs of a batch for prediction, or ``DataError``; targets are ignored."""
    if is_sequence(batch):
        if len(batch) == 1:
            return batch[0]
        if len(batch) == 2 or hasattr(batch, "_fields"):
            return split_supervised(batch)[0]
    elif isinstance(batch, Mapping):
        target_keys = [key for key in TARGET_KEYS if key in batch]
        return _mapping_inputs(batch, *target_keys)
    if isinstance(batch, (Tensor, PackedSequence)) or is_object(batch):
        return batch
    raise DataError(
        f"a batch to predict must be inputs, (inputs,), (inputs, targets) or a mapping; received "
        f"{describe(batch)}. For several inputs make the batch ((first, second),)."
    )


def is_list_of_samples(batch: Any) -> bool:
    """Whether a batch may be a list with one entry per sample, and not inputs with targets.

    Its entries are of one kind and no lists; tensors have one type and number of dimensions.
    """
    if type(batch) is not list or not batch or isinstance(batch[0], list):
        return False
    kinds = {
        (type(part), part.ndim, part.dtype) if isinstance(part, Tensor) else type(part)
        for part in batch
    }
    return len(kinds) == 1


def collates_fields(data: Any) -> bool:
    """Whether a loader makes its batches with torch's ``default_collate``."""
    return isinstance(data, DataLoader) and data.collate_fn is default_collate


def as_fields(batch: Any) -> Any:
    """A batch of torch's ``default_collate`` with ``Fields`` where a sample has a tuple.

    torch makes them lists. Other lists then have one entry per sample. The batch itself stays one.
    """
    if type(batch) is not list:
        return _fields_of(batch)
    for part in batch:
        if type(part) is not Tensor:
            return [_fields_of(part) for part in batch]
    return batch


class Fields(tuple[Any, ...]):
    """The fields of a tuple, each collated; not a tuple with one entry per sample."""


def _fields_of(part: Any) -> Any:
    if type(part) is list:
        return Fields([_fields_of(field) for field in part])
    if type(part) is dict:
        return {key: _fields_of(value) for key, value in part.items()}
    return part


def _mapping_inputs(batch: Mapping[str, Any], *target_keys: str) -> Any:
    for key in INPUT_KEYS:
        if key in batch:
            return batch[key]
    return {key: value for key, value in batch.items() if key not in target_keys}
