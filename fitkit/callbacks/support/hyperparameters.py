"""Hyperparameters of a run, as flat names and plain values for experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST_CHARACTERS = 500  # the lowest limit of a tracker: older servers of MLflow
_NOT_LOGGED = ("first_epoch", "last_epoch", "resumed", "save_on_last_epoch")

PlainValue = bool | int | float | str | None


def hyperparameters(handler: Any, params: Mapping[str, Any]) -> dict[str, PlainValue]:
    """The model, optimizer, scheduler and loss with their arguments, the seed, and ``params``.

    Args:
        handler: the handler of the run.
        params: ``Callback.params`` of the call of ``fit``.
    """
    parts = handler.parts
    parameters: dict[str, Any] = {"model": type(handler.module).__name__}
    for name in ("model", "optimizer", "scheduler"):
        spec = getattr(parts, f"{name}_spec")
        if spec is not None:
            parameters[name] = spec.cls.__name__
            parameters.update({f"{name}.{key}": value for key, value in spec.kwargs.items()})
    if parts.loss is not None:
        function = parts.loss.function
        parameters["loss"] = getattr(function, "__name__", type(function).__name__)
        parameters.update({f"loss.{key}": value for key, value in parts.loss.kwargs.items()})
    parameters["seed"] = handler.seed
    parameters.update({key: value for key, value in params.items() if key not in _NOT_LOGGED})
    return flatten(parameters)


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, PlainValue]:
    """Nested mappings with names joined by dots; other objects become short text.

    >>> flatten({"lr": 0.1, "model": {"sizes": (8, 2)}})
    {'lr': 0.1, 'model.sizes': '(8, 2)'}
    """
    parameters: dict[str, PlainValue] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            parameters.update(flatten(value, f"{name}."))
        else:
            parameters[name] = _to_plain(value)
    return parameters


def _to_plain(value: Any) -> PlainValue:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value.__name__ if isinstance(value, type) else str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
