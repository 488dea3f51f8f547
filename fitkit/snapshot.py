"""The whole state of a handler as a dict, and a handler put back into that state."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.checkpointing import schema
from fitkit.checkpointing.plain import TAG, from_plain, to_plain
from fitkit.checkpointing.references import name_of, resolve
from fitkit.core.errors import CheckpointError, FitkitError, add_note, listed
from fitkit.parts import Described
from fitkit.runtime.averaging import saved_decay
from fitkit.version import __version__

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

_TORCH_LOSSES = "torch.nn.modules.loss"


@dataclass(frozen=True)
class Skips:
    """Parts of a checkpoint that are left out when it is loaded."""

    optimizer: bool = False
    scheduler: bool = False
    history: bool = False
    callbacks: bool = False
    sampler_sde: bool = False
    ema: bool = False


def take(handler: NNHandler) -> dict[str, Any]:
    """The state by the keys of ``schema``: tensors (live, not copies) and plain types."""
    parts = handler.parts
    progress, loader, scaler = handler.unfinished.describe(handler.state)
    state: dict[str, Any] = {
        "format_version": schema.FORMAT_VERSION,
        "fitkit_version": __version__,
        "pytorch_version": str(torch.__version__),
        **_described("model", parts.model_spec),
        "model_type": parts.model_type.value,
        "model_code": handler.model_code,
        "model_state_dict": handler.training_weights(),
        **_described("optimizer", parts.optimizer_spec),
        "optimizer_state_dict": None if parts.optimizer is None else parts.optimizer.state_dict(),
        **_described("scheduler", parts.scheduler_spec),
        "scheduler_interval": parts.scheduler_interval,
        "scheduler_monitor": parts.scheduler_monitor,
        "scheduler_state_dict": None if parts.scheduler is None else parts.scheduler.state_dict(),
        "loss": _described_loss(handler),
        "scaler_state_dict": scaler,
        "ema_state_dict": None if handler.ema is None else handler.ema.state_dict(),
        "callback_states": _states_beside_history(handler),
        "history": handler.history.state_dict(),
        "progress": progress,
        "rng": handler.unfinished.streams_to_save(own=handler.seed is not None),
        "loader": loader,
        "seed": handler.seed,
        "data_seed": handler.data_seed,
        "sampler": None,
        "sde": None,
    }
    plain: dict[str, Any] = to_plain(state)
    return plain


def _states_beside_history(handler: NNHandler) -> dict[str, Any]:
    states = handler.callbacks.state_dict()
    states.pop(handler.history.name, None)
    return states


def _described(part: str, spec: Described | None) -> dict[str, Any]:
    if spec is None:
        return {f"{part}_class": None, f"{part}_kwargs": None}
    return {f"{part}_class": name_of(spec.cls), f"{part}_kwargs": _plain_kwargs(spec)}


def _plain_kwargs(spec: Described) -> dict[str, Any] | None:
    """The arguments; ``None`` if one cannot be stored, so that nobody rebuilds without it."""
    kwargs: dict[str, Any] = {}
    for name, value in spec.kwargs.items():
        if isinstance(value, type) and issubclass(value, nn.Module):
            kwargs[name] = {TAG: "class", "name": name_of(value)}
            continue
        try:
            kwargs[name] = to_plain(value, f"{spec.cls.__name__}({name}=)")
        except CheckpointError:
            return None
    return kwargs


def _described_loss(handler: NNHandler) -> dict[str, Any] | None:
    """A loss module of torch as class and arguments; other losses the program must set again."""
    loss = handler.parts.loss
    if loss is None or type(loss.function).__module__ != _TORCH_LOSSES:
        return None
    module = loss.function
    names = inspect.signature(type(module)).parameters
    return {
        "class": name_of(type(module)),
        "kwargs": {name: getattr(module, name) for name in names if hasattr(module, name)},
        "pass_epoch": loss.pass_epoch,
        "call_kwargs": _plain_kwargs(Described(type(module), loss.kwargs)),
    }


def build_kwargs(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The stored arguments of a part, ready to be passed.

    Raises:
        CheckpointError: they could not be stored.
    """
    stored = state[f"{part}_kwargs"]
    if stored is None:
        raise CheckpointError(
            f"the arguments of {state[f'{part}_class']!r} could not be stored in the checkpoint: "
            f"pass model_class=<a ready module>."
            if part == "model"
            else f"the arguments of the {part} could not be stored in the checkpoint: pass "
            f"skip_{part}=True and call set_{part} yourself."
        )
    return {name: _argument(value) for name, value in stored.items()}


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and value.get(TAG) == "class":
        return resolve(value["name"], nn.Module, "pass model_class=<a ready module>")
    return from_plain(value)


@contextmanager
def rebuilding(part: str, remedy: str) -> Iterator[None]:
    """Inside ``with`` a part is built from stored arguments; whatever it says is told as ours."""
    try:
        yield
    except FitkitError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the {part} cannot be built with the arguments in the checkpoint: {error}. If you "
            f"trust the rest of the file, {remedy}."
        ) from error


def rebuild_parts(handler: NNHandler, state: Mapping[str, Any], skips: Skips) -> None:
    """Give a new handler the optimizer, scheduler and loss that a checkpoint describes.

    Raises:
        CheckpointError: a class is not here or of the wrong kind.
    """
    if state["optimizer_class"] is not None and not skips.optimizer:
        remedy = "pass skip_optimizer=True and call set_optimizer yourself"
        cls = resolve(state["optimizer_class"], Optimizer, remedy)
        with rebuilding("optimizer", remedy):
            handler.set_optimizer(cls, **build_kwargs(state, "optimizer"))
        if state["scheduler_class"] is not None and not skips.scheduler:
            _rebuild_scheduler(handler, state)
    saved = state["loss"]
    if saved is not None and saved.get("call_kwargs") is not None:
        remedy = "call set_loss_fn after loading"
        with rebuilding("loss", remedy):
            loss = resolve(saved["class"], nn.Module, remedy)
            handler.set_loss_fn(
                loss(**from_plain(saved["kwargs"])),
                saved["pass_epoch"],
                **from_plain(saved["call_kwargs"]),
            )


def _rebuild_scheduler(handler: NNHandler, state: Mapping[str, Any]) -> None:
    if state["scheduler_kwargs"] is None:
        warnings.warn(
            f"the arguments of the scheduler {state['scheduler_class']!r} could not be stored: "
            f"call set_scheduler before going on; its state is kept for it.",
            stacklevel=2,
        )
        return
    remedy = "pass skip_scheduler=True and call set_scheduler yourself"
    cls = resolve(state["scheduler_class"], LRScheduler, remedy)
    with rebuilding("scheduler", remedy):
        handler.set_scheduler(
            cls,
            interval=state.get("scheduler_interval", "epoch"),
            monitor=state.get("scheduler_monitor"),
            **build_kwargs(state, "scheduler"),
        )


def restore(
    handler: NNHandler, state: dict[str, Any], *, strict: bool = True, skips: Skips | None = None
) -> None:
    """Put ``handler`` into the saved state; on an error it is as it was.

    Raises:
        CheckpointError: something does not fit; the sentence names it.
    """
    skips = skips or Skips()
    check_weights(handler.module, state["model_state_dict"], strict=strict)
    if not skips.optimizer:
        _check_optimizer(handler, state)
    before = handler.get_state_dict()
    undo = (handler.callbacks.remember(), handler.unfinished.remember())
    try:
        _apply(handler, state, strict=strict, skips=skips)
    except BaseException as error:
        _apply(handler, before, strict=True, skips=Skips(callbacks=True))
        for put_back in undo:
            put_back()
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            raise
        wrapped = CheckpointError(f"the checkpoint does not fit this handler: {error}")
        for note in getattr(error, "__notes__", ()):
            add_note(wrapped, note)
        raise wrapped from error


def _apply(handler: NNHandler, state: dict[str, Any], *, strict: bool, skips: Skips) -> None:
    parts = handler.parts
    parts.module.load_state_dict(from_plain(state["model_state_dict"]), strict=strict)
    if parts.optimizer is not None and state["optimizer_state_dict"] and not skips.optimizer:
        parts.optimizer.load_state_dict(from_plain(state["optimizer_state_dict"]))
    saved_schedule = state["scheduler_state_dict"]
    if saved_schedule and not (skips.scheduler or skips.optimizer):
        if parts.scheduler is None:
            handler.unfinished.scheduler = from_plain(saved_schedule)
        else:
            parts.scheduler.load_state_dict(from_plain(saved_schedule))
    if not skips.ema:
        handler.drop_average()
        average = state["ema_state_dict"]
        if average:
            handler.start_averaging(saved_decay(average))
            handler.ema.load_state_dict(average)  # type: ignore[union-attr]
    if not skips.history:
        handler.history.load_state_dict(from_plain(state["history"]))
    handler.state.load_state_dict(from_plain(state["progress"]["state"]))
    handler.unfinished.load(from_plain({key: state[key] for key in handler.unfinished.KEYS}))
    handler.adopt_seeds(state["seed"], state.get("data_seed"))
    if not skips.callbacks:
        states = from_plain(state["callback_states"])
        handler.callbacks.load_state_dict(states)


def check_weights(module: nn.Module, weights: Mapping[str, Any], *, strict: bool) -> None:
    """Fail, before anything is changed, if weights do not fit a module.

    Raises:
        CheckpointError: names are missing or unknown (if ``strict``), or shapes differ.
    """
    own = module.state_dict()
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    problems = [
        f"{name!r} has shape {tuple(tensors[name].shape)} in the checkpoint and "
        f"{tuple(value.shape)} in the model"
        for name, value in own.items()
        if isinstance(value, Tensor) and name in tensors and value.shape != tensors[name].shape
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


def _check_optimizer(handler: NNHandler, state: Mapping[str, Any]) -> None:
    optimizer, saved = handler.optimizer, state["optimizer_state_dict"]
    if optimizer is None or saved is None:
        return
    own_name = name_of(type(optimizer))
    if state["optimizer_class"] not in (None, own_name):
        raise CheckpointError(
            f"the checkpoint holds the state of {state['optimizer_class']!r}, this handler has "
            f"{own_name!r}: set the same optimizer, or pass skip_optimizer=True to NNHandler.load."
        )
    own_sizes = [len(group["params"]) for group in optimizer.param_groups]
    try:
        saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint's optimizer state has no parameter groups."
        ) from error
    if own_sizes != saved_sizes:
        raise CheckpointError(
            f"the checkpoint's optimizer has parameter groups of {saved_sizes} parameters, this "
            f"handler's of {own_sizes}: set the optimizer as it was saved."
        )
