"""Splits a batch into inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fitkit.core.errors import DataError, describe, listed
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
    """``(inputs, targets)`` of a pair or of a mapping; raises ``DataError`` for other batches.

    A mapping has its targets under one of ``TARGET_KEYS``, and its inputs under one of
    ``INPUT_KEYS``; without such a key all other entries are inputs, passed by name.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        target_keys = [key for key in TARGET_KEYS if key in batch]
        if len(target_keys) == 1:
            return _mapping_inputs(batch, target_keys[0]), batch[target_keys[0]]
        raise DataError(
            f"a batch that is a mapping needs its targets under exactly one of "
            f"{listed(TARGET_KEYS)}; received the keys {listed(map(str, batch))}. Rename the "
            f"key, or use set_train_step to handle the batch yourself."
        )
    raise DataError(
        f"a batch must be (inputs, targets), a pair, or a mapping; received {describe(batch)}. "
        f"For several inputs make the batch ((first, second), targets); for a model without "
        f"targets pass model_type='generative'; for anything else use set_train_step."
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
    if isinstance(batch, Mapping):
        target_keys = [key for key in TARGET_KEYS if key in batch]
        return _mapping_inputs(batch, *target_keys)
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return batch[0]
    if isinstance(batch, Tensor):
        return batch
    raise DataError(
        f"a batch to predict must be inputs, (inputs,), (inputs, targets) or a mapping; received "
        f"{describe(batch)}. For several inputs make the batch ((first, second),)."
    )


def _mapping_inputs(batch: Mapping[str, Any], *target_keys: str) -> Any:
    for key in INPUT_KEYS:
        if key in batch:
            return batch[key]
    return {key: value for key, value in batch.items() if key not in target_keys}


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a tuple or list is passed as arguments, a mapping as keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)
