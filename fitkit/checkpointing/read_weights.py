"""Read the state or only the weights of a checkpoint, and check weights against a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.core.errors import CheckpointError, DamagedCheckpointError, listed

REMEDY = "Build the model as it was saved, or pass strict_load=False to leave out names."
# torch's names for how a module loads its own part of a state dict
_LOAD, _HOOKS = "_load_from_state_dict", "_load_state_dict_pre_hooks"


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
        averaged: of a checkpoint with averaged weights (EMA, or of a schedule-free optimizer), take
            those: they were evaluated.
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
        elif averaged and state.get("evaluated_state_dict"):
            weights = {**weights, **state["evaluated_state_dict"]}
    else:
        weights = state.get("model_state_dict", state) if isinstance(state, dict) else None
    if not schema.is_weights(weights):
        raise DamagedCheckpointError(
            f"{str(path)!r} holds no weights: expected a checkpoint of fitkit or a state dict of "
            f"tensors."
        )
    decoded: dict[str, Any] = decode(weights)
    return decoded


def check_weights(
    module: nn.Module, weights: Mapping[str, Any], *, strict: bool = True, remedy: str = REMEDY
) -> None:
    """Raise, before anything is changed, if weights do not fit a module.

    What modules with a loading of their own take is left to them (``has_own_loading``).

    Raises:
        CheckpointError: names are missing or unknown (if ``strict``), or shapes differ.
    """
    free = tuple(_prefixes_of_own_loading(module))
    own = {name: v for name, v in module.state_dict().items() if not name.startswith(free)}
    saved = {name: v for name, v in weights.items() if not str(name).startswith(free)}
    problems = [
        f"{name!r} has shape {tuple(saved[name].shape)} in the checkpoint and "
        f"{tuple(value.shape)} in the model"
        for name, value in own.items()
        if isinstance(value, Tensor)
        and isinstance(saved.get(name), Tensor)
        and value.shape != saved[name].shape
    ]
    if strict:
        missing, unknown = set(own) - set(saved), set(saved) - set(own)
        problems += [f"missing in the checkpoint: {listed(missing)}"] if missing else []
        problems += [f"unknown to the model: {listed(unknown)}"] if unknown else []
    if problems:
        raise CheckpointError(
            f"the checkpoint's weights do not fit {type(module).__name__}: {'; '.join(problems)}. "
            f"{remedy}"
        )


def has_own_loading(module: nn.Module) -> bool:
    """Whether parts rename, resize or fill in what they load, so that nothing else can check it.

    Lazy modules do, and modules that override ``_load_from_state_dict`` or have hooks for it.
    """
    return any(True for _ in _prefixes_of_own_loading(module))


def _prefixes_of_own_loading(module: nn.Module) -> Iterator[str]:
    """The beginnings of the names that belong to such parts."""
    if type(module).load_state_dict is not nn.Module.load_state_dict:
        yield ""
    for name, part in module.named_modules():
        is_overridden = getattr(type(part), _LOAD) is not getattr(nn.Module, _LOAD)
        if is_overridden or any(map(_may_change_names, vars(part)[_HOOKS].values())):
            yield f"{name}." if name else ""


def _may_change_names(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)
    # those of FSDP only put the shards back
    return not str(getattr(function, "__module__", "")).startswith("torch.distributed.")
