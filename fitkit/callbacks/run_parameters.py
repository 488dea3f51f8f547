"""What describes a run, as flat names and plain values for people to compare runs by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 500  # characters; the shortest limit of a tracker is MLflow's of old, so many bytes
_OF_THE_RUN = ("first_epoch", "last_epoch", "resumed", "save_on_last_epoch")

Plain = bool | int | float | str | None


def run_parameters(handler: Any, params: Mapping[str, Any]) -> dict[str, Plain]:
    """Model, optimizer, scheduler and loss with their arguments, the seed, and what ``fit`` does.

    Args:
        handler: whose parts they are.
        params: what callbacks are told of the call of ``fit``.
    """
    parts = handler.parts
    found: dict[str, Any] = {"model": type(handler.module).__name__}
    for name in ("model", "optimizer", "scheduler"):
        spec = getattr(parts, f"{name}_spec")
        if spec is not None:
            found[name] = spec.cls.__name__
            found.update({f"{name}.{key}": value for key, value in spec.kwargs.items()})
    if parts.loss is not None:
        function = parts.loss.function
        found["loss"] = getattr(function, "__name__", type(function).__name__)
        found.update({f"loss.{key}": value for key, value in parts.loss.kwargs.items()})
    found["seed"] = handler.seed
    found.update({key: value for key, value in params.items() if key not in _OF_THE_RUN})
    return flat(found)


def flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Plain]:
    """Nested mappings with names joined by dots; what is not plain becomes its text, cut short.

    >>> flat({"lr": 0.1, "model": {"sizes": (8, 2)}})
    {'lr': 0.1, 'model.sizes': '(8, 2)'}
    """
    found: dict[str, Plain] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        else:
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> Plain:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value.__name__ if isinstance(value, type) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
