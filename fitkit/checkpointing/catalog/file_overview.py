"""Overview of a file for ``fitkit inspect``, read without its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog.metadata import Metadata, as_damaged_error, read_metadata
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.format.tags import TAG
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.core.errors import MonitorError
from fitkit.core.monitor import Monitor
from fitkit.core.tree import iterate_tensors

_PROGRESS = ("epoch", "batch", "global_step", "optimizer_steps", "samples_seen", "phase")


def overview(path: Path) -> dict[str, Any]:
    """What a file holds, by the names that docs/command-line.md explains.

    Its ``kind`` is ``"checkpoint"``, ``"weights"`` (a state dict) or ``"other"``: another program's
    file, or a part of a checkpoint. Tensors are on the device ``"meta"``.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = single_or_sharded.read_without_tensors(path)
    found: dict[str, Any] = {"path": path, "size_bytes": single_or_sharded.size_bytes(path)}
    with as_damaged_error(path):
        if schema.is_full(content):
            return found | {"kind": "checkpoint"} | _of_checkpoint(read_metadata(path))
        if schema.is_weights(content):
            return found | {"kind": "weights", "weights": content}
        inner = content.get("model_state_dict") if isinstance(content, dict) else None
        weights = {"weights": inner} if schema.is_weights(inner) else {}
        return found | {"kind": "other", "content": content} | weights


def _of_checkpoint(metadata: Metadata) -> dict[str, Any]:
    state = metadata.state
    progress = state["progress"]["state"]
    scheduler = _component(state, "scheduler")
    return {
        "format_version": metadata.format_version,
        "fitkit_version": metadata.fitkit_version,
        "pytorch_version": metadata.pytorch_version,
        "progress": {name: progress[name] for name in (*_PROGRESS, "stop_reason")},
        "scores": last_and_best(decode(state["history"])),
        "model": {
            "class": state["model_class"],
            "kwargs": decode_readable(state["model_kwargs"]),
            "type": state["model_type"],
            "code": state["model_code"],
        },
        "loss": state["loss"] and _pick(state["loss"], "class", "kwargs"),
        "optimizer": _optimizer(state),
        "scheduler": scheduler and {**scheduler, "interval": state["scheduler_interval"]},
        "ema": _pick(state["ema_state_dict"] or {}, "decay", "num_averaged"),
        "seed": state["seed"],
        "callbacks": decode_readable(dict(metadata.callbacks)),
        "weights": state["model_state_dict"],
    }


def _pick(state: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: state.get(name) for name in names} if state else {}


def _component(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    name = state[f"{part}_class"]
    if name is None and state[f"{part}_state_dict"] is None:
        return {}
    return {"class": name, "kwargs": decode_readable(state[f"{part}_kwargs"])}


def _optimizer(state: Mapping[str, Any]) -> dict[str, Any]:
    config, saved = _component(state, "optimizer"), state["optimizer_state_dict"]
    if not saved:
        return config
    tensors = list(iterate_tensors(saved))
    return {
        **config,
        "lr": [group.get("lr") for group in saved["param_groups"]],
        "num_parameters": [len(group["params"]) for group in saved["param_groups"]],
        "num_tensors": len(tensors),
        "size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def last_and_best(history: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each column of a history the last value, and the best with its epoch (from 1).

    Whether less or more is better follows from the name; where it does not, as for ``lr``, there is
    no best.

    >>> last_and_best({"epoch": [0, 1], "history": {"loss": [0.5, 0.7]}})
    {'loss': {'last': 0.7, 'best': 0.5, 'best_epoch': 1}}
    """
    return {
        name: {"last": float(values[-1]), **_best(name, values, history["epoch"])}
        for name, values in history["history"].items()
        if values
    }


def _best(name: str, values: list[float], epochs: list[int]) -> dict[str, Any]:
    none: dict[str, Any] = {"best": None, "best_epoch": None}
    try:
        monitor = Monitor(name)
    except MonitorError:
        return none
    finite = [pair for pair in zip(values, epochs, strict=True) if math.isfinite(pair[0])]
    if not finite:
        return none
    value, epoch = min(finite, key=lambda pair: monitor.sort_key(pair[0]))
    return {"best": float(value), "best_epoch": epoch + 1}


def decode_readable(value: Any) -> Any:
    """``value`` decoded, but classes as names and arrays as tensors, whose values were not read."""
    if isinstance(value, Mapping):
        if value.get(TAG) in ("class", "ndarray"):
            return value.get("name", value.get("data"))
        items = {key: decode_readable(item) for key, item in value.items()}
        return decode(items) if TAG in items else items
    if type(value) in (list, tuple):
        return type(value)(decode_readable(item) for item in value)
    return value
