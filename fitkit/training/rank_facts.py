"""What a rank says of itself when a call of ``fit`` begins, so that the ranks can compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.storage.is_checkpoint import CHECKPOINT_SUFFIXES
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.event import Event
from fitkit.core.validation_sets import pass_name
from fitkit.data.own_part import part_facts
from fitkit.data.spec import DataSpec
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.group_options import MEMBERS
from fitkit.handler.repr import spec_text
from fitkit.runtime.lazy_modules import has_values
from fitkit.training.options import FitOptions
from fitkit.training.run_config import SEED, TRAINING_DATA, length_text, run_config

_BATCH_END = (Event.TRAIN_BATCH_END, Event.TEST_BATCH_END)
_OF_GROUP = (*MEMBERS, "initial_lr")  # the scheduler sets the latter
# arguments of built-in callbacks that may differ: only rank 0 writes files and shows progress
_OF_ONE_RANK = frozenset({"filepath", "save_path", "save_model_name", "verbose"})


def fit_facts(
    handler: BaseHandler, options: FitOptions, train: DataSpec, sets: Mapping[str, DataSpec]
) -> dict[str, Any]:
    """Everything of which a difference between ranks would end in a wait or in two runs."""
    config = run_config(handler, options, train, {})
    for name in (SEED, TRAINING_DATA, "validation data", "ranks"):
        config.pop(name, None)
    parts, state = handler.parts, handler.state
    settings = {
        **config,
        "drop_last": bool({**train.loader_kwargs, **options.loader_kwargs()}.get("drop_last")),
        "save_on_last_epoch": options.save_on_last_epoch,
        "resume": _kind_of_resume(options.resume),
        "epochs done before": state.epoch,
        "training batches done before": state.global_step,
        **_optimizer_settings(handler),
        "scheduler": spec_text(parts.scheduler_spec) or None,
        "scheduler interval": parts.scheduler_interval,
        "scheduler monitor": parts.scheduler_monitor,
        "metrics": ", ".join(parts.metrics),
        "strategy": type(handler.parallel).__name__,
    }
    return {
        "settings": settings,
        "model": model_digest(handler),
        "callbacks": [_callback_facts(c) for c in handler.callbacks if c.needs_all_ranks],
        "seeds": (options.seed, handler.seeds.given),
        **_of_logs(handler.callbacks),
        **_of_passes(handler, options.seed, by_pass(train, sets)),
    }


def evaluation_facts(
    handler: BaseHandler, callbacks: CallbackList, sets: Mapping[str, DataSpec]
) -> dict[str, Any]:
    """What ``evaluate`` compares."""
    return {"settings": {}, **_of_logs(callbacks), **_of_passes(handler, None, by_pass(None, sets))}


def by_pass(train: DataSpec | None, sets: Mapping[str, DataSpec]) -> dict[str, DataSpec]:
    """The data by the name of its pass."""
    named = {pass_name(name): spec for name, spec in sets.items()}
    return named if train is None else {"train": train, **named}


def _of_passes(
    handler: BaseHandler, seed: int | None, specs: Mapping[str, DataSpec]
) -> dict[str, Any]:
    return {
        "data": {name: data_facts(handler, spec) for name, spec in specs.items()},
        "data_seed": handler.seeds.data if seed is None else seed,
    }


def data_facts(handler: BaseHandler, spec: DataSpec) -> dict[str, Any]:
    """What ranks compare of the data of one pass."""
    size = handler.world.size
    return part_facts(spec.data, spec.loader_kwargs, spec.split, size, length_text(spec))


def _of_logs(callbacks: CallbackList) -> dict[str, Any]:
    """Which callbacks read the logs of batches, and which log values at the end of an epoch."""
    return {
        "intervals": {
            event: sorted({c.batch_logs_interval for c in callbacks.listeners(event)} - {0})
            for event in _BATCH_END
        },
        "epoch_end": [(c.order, _logs(c)) for c in callbacks.listeners(Event.EPOCH_END)],
        "may_log": callbacks.may_log,
    }


def _logs(callback: Callback) -> bool:
    logs = callback.logs_at_epoch_end
    return callback.may_log if logs is None else logs


def _kind_of_resume(resume: Any) -> str:
    """What is looked for, in words; paths may differ between ranks."""
    if resume is None or resume is False:
        return "none"
    is_file = resume is not True and str(resume).endswith(tuple(CHECKPOINT_SUFFIXES))
    return "a file" if is_file else "a folder"


def _optimizer_settings(handler: BaseHandler) -> dict[str, Any]:
    """The class of the optimizer, and the options of each parameter group."""
    optimizer = handler.optimizer
    if optimizer is None:
        return {"optimizer": None}
    settings: dict[str, Any] = {"optimizer": type(optimizer).__name__}
    for number, group in enumerate(optimizer.param_groups):
        where = f" of parameter group {number}"
        settings[f"number of parameters{where}"] = len(group["params"])
        settings |= {k + where: _text(v) for k, v in group.items() if k not in _OF_GROUP}
    return settings


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_text, value))})"
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if is_plain else type(value).__name__


def model_lines(handler: BaseHandler) -> list[str]:
    """A line for each parameter and buffer of model and loss: name, shape, type, trained or not."""
    modules = handler.parts.trained_modules
    named = [*modules.named_parameters().items(), *_named_buffers(handler)]
    return [
        f"{name} {tuple(t.shape) if has_values(t) else 'lazy'} {_dtype(t.dtype)}"
        + ("" if t.requires_grad else " not trained")
        for name, t in named
    ]


def _named_buffers(handler: BaseHandler) -> Iterable[tuple[str, Tensor]]:
    for module in handler.parts.trained_modules:
        yield from module.named_buffers()


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def model_digest(handler: BaseHandler) -> str:
    """A short text that is the same for two models of the same ``model_lines``."""
    return hashlib.blake2b("\n".join(model_lines(handler)).encode(), digest_size=16).hexdigest()


def _callback_facts(callback: Callback) -> dict[str, Any]:
    config = {k: v for k, v in callback.config().items() if k not in _OF_ONE_RANK}
    return {"class": type(callback).__name__, "config": config}
