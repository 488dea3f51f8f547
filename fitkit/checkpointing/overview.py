"""A file at a glance: what it is, told without reading its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fitkit.checkpointing import checkpoint, schema
from fitkit.checkpointing.metadata import Metadata, read_metadata
from fitkit.checkpointing.plain import TAG, from_plain
from fitkit.core.errors import DamagedCheckpointError, FitkitError, MonitorError
from fitkit.core.monitor import Monitor
from fitkit.core.tree import iterate_tensors

_COUNTERS = ("epoch", "batch", "global_step", "optimizer_steps", "samples_seen", "phase")


def overview(path: Path) -> dict[str, Any]:
    """What a file holds, by names that docs/command-line.md explains.

    Its ``kind`` is ``"checkpoint"``, ``"weights"`` (a state dict) or ``"other"``: another program's
    file, or a part of a checkpoint. Tensors are on the device ``"meta"``.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = checkpoint.read_without_tensors(path)
    found: dict[str, Any] = {"path": path, "size_bytes": checkpoint.size_bytes(path)}
    with told_as_damage(path):
        if schema.is_full(content):
            return found | {"kind": "checkpoint"} | _of_checkpoint(read_metadata(path))
        if schema.is_weights(content):
            return found | {"kind": "weights", "weights": content}
        inner = content.get("model_state_dict") if isinstance(content, dict) else None
        weights = {"weights": inner} if schema.is_weights(inner) else {}
        return found | {"kind": "other", "content": content} | weights


@contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Inside ``with`` a file's content is looked at; what does not fit is told as damage."""
    try:
        yield
    except FitkitError:
        raise
    except Exception as error:  # whatever content that means nothing leads to
        raise DamagedCheckpointError(
            f"{str(path)!r} is not a valid checkpoint: its content cannot be told ({error!r}). Use "
            f"an earlier checkpoint."
        ) from error


def _of_checkpoint(found: Metadata) -> dict[str, Any]:
    state = found.state
    progress = state["progress"]["state"]
    return {
        "format_version": found.format_version,
        "fitkit_version": found.fitkit_version,
        "pytorch_version": found.pytorch_version,
        "progress": {name: progress[name] for name in (*_COUNTERS, "stop_reason")},
        "scores": scores(from_plain(state["history"])),
        "model": {
            "class": state["model_class"],
            "kwargs": plainly(state["model_kwargs"]),
            "type": state["model_type"],
            "code": state["model_code"],
        },
        "loss": state["loss"] and {name: state["loss"].get(name) for name in ("class", "kwargs")},
        "optimizer": _optimizer(state),
        "scheduler": _part(state, "scheduler")
        and {**_part(state, "scheduler"), "interval": state["scheduler_interval"]},
        "ema": _average(state["ema_state_dict"]),
        "seed": state["seed"],
        "callbacks": plainly(dict(found.callbacks)),
        "weights": state["model_state_dict"],
    }


def _part(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    name = state[f"{part}_class"]
    if name is None and state[f"{part}_state_dict"] is None:
        return {}
    return {"class": name, "kwargs": plainly(state[f"{part}_kwargs"])}


def _optimizer(state: Mapping[str, Any]) -> dict[str, Any]:
    found, saved = _part(state, "optimizer"), state["optimizer_state_dict"]
    if not saved:
        return found
    tensors = list(iterate_tensors(saved))
    return {
        **found,
        "lr": [group.get("lr") for group in saved["param_groups"]],
        "num_parameters": [len(group["params"]) for group in saved["param_groups"]],
        "num_tensors": len(tensors),
        "size_bytes": sum(one.numel() * one.element_size() for one in tensors),
    }


def _average(saved: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: saved.get(name) for name in ("decay", "num_averaged")} if saved else {}


def scores(history: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each column of a history the last value, and the best with its epoch (from 1).

    What is better is known from the name; there is no best of a name that says nothing, such as
    ``lr``.

    >>> scores({"epoch": [0, 1], "history": {"loss": [0.5, 0.7]}})
    {'loss': {'last': 0.7, 'best': 0.5, 'best_epoch': 1}}
    """
    return {
        name: {"last": float(values[-1]), **_best(name, values, history["epoch"])}
        for name, values in history["history"].items()
        if values
    }


def _best(name: str, values: list[float], epochs: list[int]) -> dict[str, Any]:
    try:
        judge = Monitor(name)
    except MonitorError:
        return {"best": None, "best_epoch": None}
    finite = [pair for pair in zip(values, epochs, strict=True) if math.isfinite(pair[0])]
    if not finite:
        return {"best": None, "best_epoch": None}
    value, epoch = min(finite, key=lambda pair: judge.sort_key(pair[0]))
    return {"best": float(value), "best_epoch": epoch + 1}


def plainly(value: Any) -> Any:
    """What was tagged as it was, unless it is a class or an array, whose values were not read."""
    if isinstance(value, Mapping):
        if value.get(TAG) in ("class", "ndarray"):
            return value.get("name", value.get("data"))
        plain = {key: plainly(item) for key, item in value.items()}
        return from_plain(plain) if TAG in plain else plain
    if type(value) in (list, tuple):
        return type(value)(plainly(item) for item in value)
    return value
