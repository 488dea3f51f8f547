"""Read the state or only the weights of a checkpoint, and check weights against a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.core.errors import CheckpointError, DamagedCheckpointError, listed


def read_state(path: str | Path) -> dict[str, Any]:
    """The verified content of a full checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be used.
    """
    return schema.validate(single_or_sharded.read(Path(path)), path)


def read_weights(
    path: str | Path, *, averaged: bool = True, empty: single_or_sharded.Empty | None = None
) -> dict[str, Any]:
    """The model's weights in a full checkpoint, in a weights file, or in a bare state dict.

    They stay mapped to the file until they are used: copy what must outlive a change of it.

    Args:
        path: the file.
        averaged: of a checkpoint with averaged weights (EMA), take those: they were evaluated.
        empty: as in ``checkpoint.read``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    state = single_or_sharded.read(Path(path), mmap=True, empty=empty)
    if schema.is_full(state):
        state = schema.validate(state, path)
        weights, ema = state["model_state_dict"], state["ema_state_dict"]
        if averaged and ema:
            if not isinstance(ema.get("weights"), dict):
                raise DamagedCheckpointError(
                    f"the averaged weights in {str(path)!r} cannot be read: expected a dict."
                )
            weights = {**weights, **ema["weights"]}  # EMA has no extra state of modules
    else:
        weights = state.get("model_state_dict", state) if isinstance(state, dict) else None
    if not schema.is_weights(weights):
        raise DamagedCheckpointError(
            f"{str(path)!r} holds no weights: expected a checkpoint of fitkit or a state dict of "
            f"tensors."
        )
    decoded: dict[str, Any] = decode(weights)
    return decoded


def check_weights(module: nn.Module, weights: Mapping[str, Any], *, strict: bool) -> None:
    """Raise, before anything is changed, if weights do not fit a module.

    Raises:
        CheckpointError: names are missing or unknown (if ``strict``), or shapes differ.
    """
    own = module.state_dict()
    problems = [
        f"{name!r} has shape {tuple(weights[name].shape)} in the checkpoint and "
        f"{tuple(value.shape)} in the model"
        for name, value in own.items()
        if isinstance(value, Tensor)
        and isinstance(weights.get(name), Tensor)
        and value.shape != weights[name].shape
    ]
    if strict:
        missing, unknown = set(own) - set(weights), set(weights) - set(own)
        problems += [f"missing in the checkpoint: {listed(missing)}"] if missing else []
        problems += [f"unknown to the model: {listed(unknown)}"] if unknown else []
    if problems:
        raise CheckpointError(
            f"the checkpoint's weights do not fit {type(module).__name__}: {'; '.join(problems)}. "
            f"Build the model as it was saved, or pass strict_load=False to leave out names."
        )
