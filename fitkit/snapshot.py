"""The whole state of a handler as a dict, and a handler put back into that state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fitkit.checkpointing import schema
from fitkit.checkpointing.plain import Place, from_plain, to_plain
from fitkit.checkpointing.references import name_of
from fitkit.contents import load_optimizer, load_scheduler, require_optimizer_state
from fitkit.core.devices import on_host
from fitkit.core.errors import CheckpointError, FitkitError, add_note, listed
from fitkit.description import describe, describe_loss
from fitkit.generative_state import describe_generative, load_generative
from fitkit.runtime.averaging import saved_decay
from fitkit.version import __version__

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView


@dataclass(frozen=True)
class Skips:
    """Parts of a checkpoint that are left out when it is loaded."""

    optimizer: bool = False
    scheduler: bool = False
    history: bool = False
    callbacks: bool = False
    sampler_sde: bool = False
    ema: bool = False


def take(handler: HandlerView, place: Place = lambda tensor: tensor) -> dict[str, Any]:
    """The state by the keys of ``schema``, in tensors and plain types.

    Args:
        handler: whose state it is.
        place: gives what stands for each tensor; by default the tensor itself, live.
    """
    parts = handler.parts
    progress, loader, scaler = handler.unfinished.describe(handler.state)
    state: dict[str, Any] = {
        "format_version": schema.FORMAT_VERSION,
        "fitkit_version": __version__,
        "pytorch_version": str(torch.__version__),
        **describe("model", parts.model_spec),
        "model_type": parts.model_type.value,
        "model_code": handler.model_code,
        "model_state_dict": handler.training_weights(),
        **describe("optimizer", parts.optimizer_spec),
        "optimizer_state_dict": None if parts.optimizer is None else parts.optimizer.state_dict(),
        **describe("scheduler", parts.scheduler_spec),
        "scheduler_interval": parts.scheduler_interval,
        "scheduler_monitor": parts.scheduler_monitor,
        "scheduler_state_dict": None if parts.scheduler is None else parts.scheduler.state_dict(),
        "loss": describe_loss(handler),
        "scaler_state_dict": scaler,
        "ema_state_dict": None if handler.ema is None else handler.ema.state_dict(),
        "callback_states": _states_beside_history(handler),
        "history": handler.history.state_dict(),
        "progress": progress,
        "rng": handler.unfinished.streams_to_save(handler.device, own=handler.seed is not None),
        "loader": loader,
        "seed": handler.seed,
        "data_seed": handler.data_seed,
        **describe_generative(handler.generative),
    }
    plain: dict[str, Any] = to_plain(state, place=place)
    return plain


def _states_beside_history(handler: HandlerView) -> dict[str, Any]:
    states = handler.callbacks.state_dict()
    states.pop(handler.history.name, None)
    return states


def restore(
    handler: HandlerView,
    state: dict[str, Any],
    *,
    strict: bool = True,
    skips: Skips | None = None,
    is_undone: bool = False,
) -> None:
    """Put ``handler`` into the saved state; on an error it is as it was.

    Args:
        handler: is changed.
        state: as ``take`` returned it.
        strict: whether names of weights must match exactly.
        skips: what to leave out.
        is_undone: on an error the caller puts the handler back, or throws it away.

    Raises:
        CheckpointError: something does not fit; the sentence names it.
    """
    skips = skips or Skips()
    check_weights(handler.module, state["model_state_dict"], strict=strict)
    if not skips.optimizer:
        _check_optimizer(handler, state)
    with nullcontext() if is_undone else unchanged_on_error(handler), told_as_checkpoint_error():
        _apply(handler, state, strict=strict, skips=skips)


@contextmanager
def unchanged_on_error(handler: HandlerView) -> Iterator[None]:
    """Inside ``with`` the handler goes into another state; on an error it is as it was.

    What is kept in case of an error is kept on the host: the device may have no room for it.
    """
    with handler.contributions():
        before = take(handler, handler.parallel.locally(on_host))
    calls_made = handler.calls_made
    undo = (handler.callbacks.remember(), handler.unfinished.remember())
    try:
        yield
    except BaseException:
        _apply(handler, before, strict=True, skips=Skips(callbacks=True))
        for put_back in undo:
            put_back()
        handler.calls_made = calls_made
        raise


@contextmanager
def told_as_checkpoint_error() -> Iterator[None]:
    """Inside ``with`` the content of a checkpoint is put to use; what it causes is told as ours."""
    try:
        yield
    except FitkitError:
        raise
    except Exception as error:
        told = CheckpointError(f"the checkpoint does not fit this handler: {error}")
        for note in getattr(error, "__notes__", ()):
            add_note(told, note)
        raise told from error


def _apply(handler: HandlerView, state: dict[str, Any], *, strict: bool, skips: Skips) -> None:
    parts = handler.parts
    handler.load_weights(from_plain(state["model_state_dict"]), strict=strict)
    if parts.optimizer is not None and state["optimizer_state_dict"] and not skips.optimizer:
        load_optimizer(parts.optimizer, from_plain(state["optimizer_state_dict"]))
    saved_schedule = state["scheduler_state_dict"]
    if saved_schedule and not (skips.scheduler or skips.optimizer):
        if parts.scheduler is None:
            handler.unfinished.scheduler = from_plain(saved_schedule)
        else:
            load_scheduler(parts.scheduler, from_plain(saved_schedule))
    if not skips.ema:
        average = state["ema_state_dict"]
        if average:
            handler.start_averaging(saved_decay(average))
            handler.ema.load_state_dict(average)  # type: ignore[union-attr]
        else:
            handler.drop_average()
    if not skips.history:
        handler.history.load_state_dict(from_plain(state["history"]))
    handler.state.load_state_dict(from_plain(state["progress"]["state"]))
    handler.unfinished.load(from_plain({key: state[key] for key in handler.unfinished.KEYS}))
    handler.adopt_seeds(state["seed"], state.get("data_seed"))
    if not skips.sampler_sde:
        load_generative(handler.generative, state)
    if not skips.callbacks:
        states = from_plain(state["callback_states"])
        handler.callbacks.load_state_dict(states, handler.device)


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


def _check_optimizer(handler: HandlerView, state: Mapping[str, Any]) -> None:
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
    except (LookupError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint's optimizer state has no parameter groups."
        ) from error
    if own_sizes == saved_sizes:
        require_optimizer_state(from_plain(saved), optimizer)
    if own_sizes != saved_sizes:
        raise CheckpointError(
            f"the checkpoint's optimizer has parameter groups of {saved_sizes} parameters, this "
            f"handler's of {own_sizes}: set the optimizer as it was saved."
        )
