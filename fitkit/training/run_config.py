"""The configuration of a call of ``fit``, kept in checkpoints so that a resume can compare it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from fitkit.checkpointing.format.component_config import loss_config
from fitkit.core.component_spec import ComponentSpec, LossSpec
from fitkit.core.errors import ConfigurationError
from fitkit.core.state import FitState
from fitkit.core.validation_sets import UNNAMED
from fitkit.data.in_memory import common_length, is_in_memory
from fitkit.data.make_source import batch_size_of
from fitkit.data.own_part import RANK
from fitkit.data.spec import DataSpec
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.group_options import differs
from fitkit.handler.repr import spec_text
from fitkit.training.options import FitOptions

SEED, TRAINING_DATA, EPOCHS = "seed", "training data", "epochs"
# Arguments of fit that decide what training computes; the others are where and how long it runs.
_OPTIONS = (
    "max_steps",
    "validate_every",
    "steps_per_epoch",
    "validation_steps",
    "precision",
    "gradient_accumulation_steps",
    "gradient_clipping_norm",
    "gradient_clipping_value",
    "ema_decay",
    "overfit_batches",
    "shuffle",
)


def run_config(
    handler: BaseHandler, options: FitOptions, train: DataSpec, sets: Mapping[str, DataSpec]
) -> dict[str, Any]:
    """The configuration as the script gives it, by its name in a message; plain values.

    Optimizer, scheduler and callbacks are left out: their own entries in a checkpoint are compared.
    """
    parts, ranks = handler.parts, handler.data_world.size
    batch_size = batch_size_of(train, ranks)
    return {
        "model": spec_text(parts.model_spec) or type(parts.module).__name__,
        "loss": _loss_text(parts.loss),
        "training step": _name(parts.train_step),
        SEED: handler.seed if options.seed is None else options.seed,
        TRAINING_DATA: data_text(train),
        "validation data": _sets_text(sets),
        "batch size": None if batch_size is None else batch_size * ranks,  # over all ranks
        "ranks": ranks,
        EPOCHS: options.epochs,
        **{name.replace("_", " "): getattr(options, name) for name in _OPTIONS},
    }


def config_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs, with the old and the new one."""
    return [
        f"{name}: {_text(saved[name])} -> {_text(value)}"
        + (" (the run keeps the seed with which it began)" if name == SEED else "")
        for name, value in current.items()
        if name in saved and differs(saved[name], value)
    ]


def require_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], path: Any) -> None:
    """Raise ``ConfigurationError`` if the script trains with another seed or other data.

    Seed and number of samples decide the order of the samples, so a run cannot change them on the
    way. A user who wants that names the file itself, or begins anew.
    """
    for name in (SEED, TRAINING_DATA):
        old, new = saved.get(name), current[name]
        if name in saved and new is not None and differs(old, new):
            raise ConfigurationError(
                f"{str(path)!r} is of a run whose {name} is {_text(old)}; in this script it is "
                f"{_text(new)}. To train anew, choose another folder or remove the checkpoints of "
                f"that run. To go on with it on purpose, name the file: resume={str(path)!r}."
            )


def is_stop_obsolete(
    state: FitState,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    callback_changes: Iterable[str],
) -> bool:
    """Whether a run that was stopped early goes on, because the script was changed.

    That is so with more epochs, and if the callback that stopped it has other arguments or is gone;
    it then decides anew at its next check.
    """
    if state.stop_reason is None:
        return False
    name = state.stop_reason.partition(":")[0]
    is_changed = any(line.startswith(name) for line in callback_changes)
    before = saved.get(EPOCHS)
    return is_changed or (type(before) is int and current[EPOCHS] > before)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _sets_text(sets: Mapping[str, DataSpec]) -> str | None:
    """The size of the validation set, or the names and sizes of several."""
    if UNNAMED in sets and len(sets) == 1:
        return data_text(sets[UNNAMED])
    texts = {name or "without a name": data_text(spec) for name, spec in sets.items()}
    return ", ".join(f"{name}: {text or 'unknown'}" for name, text in texts.items()) or None


def data_text(spec: DataSpec) -> str | None:
    """The number of samples, or of batches; ``None`` if the data does not say that of all ranks."""
    return None if spec.split == RANK else length_text(spec)


def length_text(spec: DataSpec) -> str | None:
    """As ``data_text``, of this rank."""
    data, unit = spec.data, "samples"
    if is_in_memory(data):
        return f"{common_length(data)} samples"
    if isinstance(data, DataLoader):
        data = data.dataset
        if not hasattr(data, "__len__"):
            return None
    elif isinstance(data, (list, tuple)):
        unit = "batches"
    try:
        return f"{len(data)} {unit}"
    except (TypeError, NotImplementedError):  # an iterable
        return None


def _loss_text(loss: LossSpec | None) -> str | None:
    if loss is None:
        return None
    function, config = loss.function, loss_config(loss)
    kwargs = dict(loss.kwargs) if config is None else {**config["kwargs"], **loss.kwargs}
    if isinstance(function, nn.Module):
        return spec_text(ComponentSpec(type(function), kwargs))
    arguments = spec_text(ComponentSpec(type(function), kwargs)).partition("(")[2]
    return f"{_name(function)}({arguments}"


def _name(function: Any) -> str | None:
    if function is None:
        return None
    return getattr(function, "__qualname__", type(function).__qualname__)
