"""What is in a checkpoint: its keys, its version, and how its place in a run is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.core.errors import CheckpointError, DamagedCheckpointError, listed
from fitkit.core.event import Event
from fitkit.core.state import FitState

FORMAT_VERSION = 1

# Each key with the type of its value; docs/checkpoints.md describes them one by one.
KEYS: Mapping[str, type | tuple[type, ...]] = {
    "format_version": int,
    "fitkit_version": str,
    "pytorch_version": str,
    "model_class": (str, type(None)),
    "model_kwargs": (dict, type(None)),
    "model_type": str,
    "model_code": (str, type(None)),
    "model_state_dict": dict,
    "optimizer_class": (str, type(None)),
    "optimizer_kwargs": (dict, type(None)),
    "optimizer_state_dict": (dict, type(None)),
    "scheduler_class": (str, type(None)),
    "scheduler_kwargs": (dict, type(None)),
    "scheduler_interval": str,
    "scheduler_monitor": (str, type(None)),
    "scheduler_state_dict": (dict, type(None)),
    "loss": (dict, type(None)),
    "scaler_state_dict": dict,
    "ema_state_dict": (dict, type(None)),
    "callback_states": dict,
    "history": dict,
    "progress": dict,
    "rng": (dict, type(None)),
    "loader": dict,
    "seed": (int, type(None)),
    "data_seed": (int, type(None)),
    "sampler": (dict, type(None)),
    "sde": (dict, type(None)),
}


def is_full(state: Any) -> bool:
    """Whether ``state`` is a whole handler's state, not only weights."""
    return isinstance(state, dict) and "model_state_dict" in state and "progress" in state


def is_weights(state: Any) -> bool:
    """Whether ``state`` is a bare state dict: names and tensors."""
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(key, str) for key in state)
        and all(
            isinstance(value, Tensor) or key.endswith("_extra_state")
            for key, value in state.items()
        )
    )


def validate(state: Any, path: Path | str) -> dict[str, Any]:
    """``state`` as a full checkpoint of a version that can be read.

    Raises:
        CheckpointError: it holds only weights, or is of a newer format.
        DamagedCheckpointError: it is no checkpoint of fitkit, or its values are of wrong types.
    """
    where = str(path)
    if is_weights(state):
        raise CheckpointError(
            f"{where!r} holds weights only, but a full checkpoint is needed here: load it with "
            f"NNHandler.initialize_from_checkpoint, or save with save_weights_only=False."
        )
    if not is_full(state):
        found = listed(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise DamagedCheckpointError(
            f"{where!r} is not a checkpoint of fitkit: expected the keys 'model_state_dict', "
            f"'progress' and others, received {found[:200]}."
        )
    version = state.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DamagedCheckpointError(f"{where!r} has no valid format_version: {version!r}.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where!r} has format version {version}, this fitkit reads up to {FORMAT_VERSION} (it "
            f"was written by fitkit {state.get('fitkit_version')}): upgrade fitkit."
        )
    wrong = [k for k, kind in KEYS.items() if k not in state or not isinstance(state[k], kind)]
    if wrong:
        raise DamagedCheckpointError(
            f"{where!r} is not a valid checkpoint: {listed(wrong)} missing or of a wrong type."
        )
    place(state)
    checked: dict[str, Any] = state
    return checked


def place(state: dict[str, Any]) -> tuple[int, int, int, int]:
    """The place in the run at which a checkpoint was made; later is greater.

    Raises:
        CheckpointError: its progress cannot be read.
    """
    progress = FitState()
    try:
        progress.load_state_dict(state["progress"]["state"])
        found = progress.place()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedCheckpointError(
            f"the checkpoint's progress cannot be read: {error!r}."
        ) from error
    wrong = [name for name, value in vars(progress).items() if not _fits(name, value)]
    if wrong:
        raise DamagedCheckpointError(
            f"the checkpoint's progress cannot be read: {listed(wrong)} of a wrong type or value."
        )
    if not _is_event(state["progress"].get("unheard")):
        raise DamagedCheckpointError("the checkpoint's progress names no event of fitkit.")
    return found


def _is_event(unheard: Any) -> bool:
    """Whether ``unheard`` is what ``CallbackList.unheard`` gives."""
    if unheard is None:
        return True
    known = [event.value for event in Event]
    return (
        isinstance(unheard, dict)
        and unheard.get("event") in known
        and isinstance(unheard.get("args"), list)
        and isinstance(unheard.get("waiting"), list)
    )


def _fits(name: str, value: Any) -> bool:
    """Whether an attribute of ``FitState`` has a value that a run can give it."""
    if name == "stop_reason":
        return value is None or type(value) is str
    if type(value) is not type(getattr(FitState(), name)):
        return False
    if isinstance(value, dict):
        return all(type(key) is str and type(item) in (int, float) for key, item in value.items())
    return not (type(value) is int and value < 0)
