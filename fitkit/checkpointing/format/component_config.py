"""Components in a checkpoint as class name and keyword arguments, as in ``get_config``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from torch import nn

from fitkit.checkpointing.format.class_names import class_name, resolve_class
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.format.tags import TAG
from fitkit.core.component_spec import ComponentSpec, LossSpec
from fitkit.core.errors import CheckpointError, as_checkpoint_error

# the module of torch's losses; all that they have are arguments
TORCH_LOSSES = "torch.nn.modules.loss"


def encode_class(spec: ComponentSpec | None) -> str | None:
    """The name of a component's class, for a checkpoint."""
    return None if spec is None else class_name(spec.cls)


def encode_kwargs(spec: ComponentSpec | None) -> dict[str, Any] | None:
    """A component's arguments, for a checkpoint.

    ``None`` if one of them cannot be stored, so that nothing is rebuilt without it.
    """
    if spec is None:
        return None
    kwargs: dict[str, Any] = {}
    for name, value in spec.kwargs.items():
        if isinstance(value, type) and issubclass(value, nn.Module):
            kwargs[name] = {TAG: "class", "name": class_name(value)}
            continue
        try:
            kwargs[name] = encode(value, f"{spec.cls.__name__}({name}=)")
        except CheckpointError:
            return None
    return kwargs


def loss_config(loss: LossSpec | None) -> dict[str, Any] | None:
    """A loss module of torch as class and arguments; other losses the program must set again."""
    if loss is None or type(loss.function).__module__ != TORCH_LOSSES or loss.weight is not None:
        return None
    module = loss.function
    kind: Any = type(module)
    names = _argument_names(kind)
    return {
        "class": class_name(type(module)),
        "kwargs": {name: getattr(module, name) for name in names if hasattr(module, name)},
        "pass_epoch": loss.pass_epoch,
        "call_kwargs": encode_kwargs(ComponentSpec(type(module), loss.kwargs)),
    }


@cache
def _argument_names(loss_class: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(loss_class).parameters)


def decode_kwargs(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The stored arguments of a part; raises if one could not be stored or resolved."""
    stored = state[f"{part}_kwargs"]
    if stored is None:
        raise CheckpointError(
            f"the arguments of {state[f'{part}_class']!r} could not be stored in the checkpoint: "
            f"pass model_class=<a ready module>."
            if part == "model"
            else f"the arguments of the {part} could not be stored in the checkpoint: pass "
            f"skip_{part}=True and call set_{part} yourself."
        )
    return {name: _decode_argument(value) for name, value in stored.items()}


def _decode_argument(value: Any) -> Any:
    if isinstance(value, dict) and value.get(TAG) == "class":
        return resolve_class(value["name"], nn.Module, "pass model_class=<a ready module>")
    return decode(value)


def as_build_error(part: str, remedy: str) -> AbstractContextManager[None]:
    """Raise errors of building a part from its stored arguments as ``CheckpointError``."""
    return as_checkpoint_error(
        f"the {part} cannot be built with the arguments in the checkpoint",
        f"If you trust the rest of the file, {remedy}.",
        keep=CheckpointError,
    )
