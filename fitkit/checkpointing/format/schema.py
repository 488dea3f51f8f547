"""The keys of a checkpoint, their types, and the position in the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitkit.core.errors import CheckpointError, DamagedCheckpointError, as_checkpoint_error, listed
from fitkit.core.event import Event
from fitkit.core.is_tensor import is_tensor
from fitkit.core.state import FitState

FORMAT_VERSION = 1

# The keys without which a file is damaged, with the types of their values (docs/checkpoints.md).
# A new key is a line in handler/state_dict.ENTRIES, and one in OPTIONAL_KEYS.
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

# Keys that files of earlier versions lack; also ``None`` is valid.
OPTIONAL_KEYS: Mapping[str, type] = {
    "optimizer_groups": list,
    "optimizer_is_evaluating": bool,
    "evaluated_state_dict": dict,
    "scheduler_strict": bool,
    "scheduler_initial_state": dict,
    "loss_state_dict": dict,
    "loss_ema_state_dict": dict,
    "call_ends": dict,
    "config": dict,
}

# A file begins with these: a list of checkpoints shows them, and reads nothing else of a pickle.
LISTED_KEYS = (
    "format_version",
    "fitkit_version",
    "pytorch_version",
    "model_class",
    "seed",
    "data_seed",
    "history",
    "progress",
    "callback_states",
)
FIRST_OTHER_KEY = "model_kwargs"

# Keys of a sharded checkpoint: one for which folder is its own, one for everything but tensors.
REFERENCE_KEY, CONTENT_KEY = "__fitkit_shards__", "content"

# Their tensors are spread over the ranks that share a model, so a sharded checkpoint stores them
# in its folder.
SHARDED_KEYS = (
    "model_state_dict",
    "optimizer_state_dict",
    "ema_state_dict",
    "evaluated_state_dict",
)
# Whoever loads these copies the tensors into the model's own, so they may stay mapped to the file.
COPIED_KEYS = ("model_state_dict", "ema_state_dict")
_LISTENER: Mapping[str, type] = {"name": str, "identity": str}
_BAD_PROGRESS = "the checkpoint's progress cannot be read"


def is_full(state: Any) -> bool:
    """Whether ``state`` is the state of a whole handler, not only weights."""
    return isinstance(state, dict) and "model_state_dict" in state and "progress" in state


def in_file_order(content: Any) -> Any:
    """``content`` as it is written: a full checkpoint begins with ``LISTED_KEYS``."""
    if not is_full(content) or type(content) is not dict:
        return content
    first = [key for key in (*LISTED_KEYS, FIRST_OTHER_KEY) if key in content]
    return {key: content[key] for key in (*first, *content)}


def is_weights(state: Any) -> bool:
    """Whether ``state`` is a bare state dict: names and tensors."""
    if not isinstance(state, dict) or not state:
        return False
    return all(
        isinstance(key, str) and (is_tensor(value) or key.endswith("_extra_state"))
        for key, value in state.items()
    )


def validate(state: Any, path: Path | str) -> dict[str, Any]:
    """``state`` as a full checkpoint of a version that this fitkit reads.

    Raises:
        CheckpointError: it holds only weights, or is of a newer format.
        DamagedCheckpointError: it is not a checkpoint of fitkit, or has values of wrong types.
    """
    file = repr(str(path))
    if is_weights(state):
        raise CheckpointError(
            f"{file} holds weights only, but a full checkpoint is needed here: load it with "
            f"NNHandler.initialize_from_checkpoint, or save with save_weights_only=False."
        )
    if not is_full(state):
        received = listed(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise DamagedCheckpointError(
            f"{file} is not a checkpoint of fitkit: expected the keys 'model_state_dict', "
            f"'progress' and others, received {received[:200]}."
        )
    validate_keys(state, path, {**KEYS, **OPTIONAL_KEYS})
    run_position(state)
    checked: dict[str, Any] = state
    return checked


def validate_keys(state: dict[str, Any], path: Path | str, keys: Iterable[str]) -> None:
    """Check the version and the types of the values of these keys.

    Raises:
        CheckpointError: it is of a newer format.
        DamagedCheckpointError: it has values of wrong types.
    """
    file, keys = repr(str(path)), set(keys)
    version = state.get("format_version")
    if type(version) is not int or version < 1:
        raise DamagedCheckpointError(f"{file} has no valid format_version: {version!r}.")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {version}, this fitkit reads up to {FORMAT_VERSION} (it "
            f"was written by fitkit {state.get('fitkit_version')}): upgrade fitkit."
        )
    wrong = [
        key
        for key, kind in KEYS.items()
        if key in keys and (key not in state or not isinstance(state[key], kind))
    ]
    wrong += [
        key
        for key, kind in OPTIONAL_KEYS.items()
        if key in keys and not isinstance(state.get(key), (kind, type(None)))
    ]
    if wrong:
        raise DamagedCheckpointError(
            f"{file} is not a valid checkpoint: {listed(wrong)} missing or of a wrong type."
        )


def run_position(state: dict[str, Any]) -> tuple[int, int, int, int]:
    """The position in the run at which a checkpoint was made; later is greater.

    Raises:
        DamagedCheckpointError: its progress cannot be read.
    """
    progress = FitState()
    with as_checkpoint_error(_BAD_PROGRESS, kind=DamagedCheckpointError):
        progress.load_state_dict(state["progress"]["state"])
        position = progress.position()
    kinds = {name: type(value) for name, value in vars(FitState()).items()}
    wrong = [name for name, value in vars(progress).items() if not _is_valid(name, value, kinds)]
    if wrong:
        raise DamagedCheckpointError(f"{_BAD_PROGRESS}: {listed(wrong)} of a wrong type or value.")
    if not _is_pending_event(state["progress"].get("unheard")):
        raise DamagedCheckpointError(f"{_BAD_PROGRESS}: its event is not one of fitkit.")
    return position


def _is_pending_event(value: Any) -> bool:
    """Whether ``value`` can be ``CallbackList.pending_event``, of this version or of 0.2."""
    if value is None:
        return True
    is_event = isinstance(value, dict) and value.get("event") in [event.value for event in Event]
    if not is_event or not isinstance(value.get("args"), list):
        return False
    if "listeners" in value:
        entries, kinds = value["listeners"], {**_LISTENER, "config": dict, "waits": bool}
    else:  # pairs of name and identity
        pairs = value.get("waiting")
        is_paired = isinstance(pairs, list) and all(isinstance(p, list) for p in pairs)
        entries = [dict(zip(_LISTENER, p, strict=False)) for p in pairs] if is_paired else None
        kinds = dict(_LISTENER)
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in kinds.items())
        for entry in entries
    )


def _is_valid(name: str, value: Any, kinds: Mapping[str, type]) -> bool:
    """Whether an attribute of ``FitState`` has a value that a run can give it."""
    if name == "stop_reason":
        return value is None or type(value) is str
    if name == "last_lr":
        return value is None or type(value) in (int, float)
    if type(value) is not kinds[name]:
        return False
    if isinstance(value, dict):
        return all(type(key) is str and type(item) in (int, float) for key, item in value.items())
    if isinstance(value, list):
        return all(type(item) is str for item in value)
    return not (type(value) is int and value < 0)
