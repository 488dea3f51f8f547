"""Rebuild model, optimizer, scheduler, loss, SDE and sampler from the config in a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.checkpointing.bounded_build import bounded_build
from fitkit.checkpointing.format.class_names import resolve_class
from fitkit.checkpointing.format.component_config import as_build_error, decode_kwargs
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.model_source.importer import import_stored_source
from fitkit.core.errors import CheckpointError
from fitkit.generative.state import rebuild_generative
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.optimizer_groups import are_of_model, checked_groups, make_groups
from fitkit.handler.state_dict import SkipParts


def find_model(
    state: Mapping[str, Any], path: str | Path, given: Any, *, trust_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The model's class, or a ready module, and the arguments to build it with.

    ``given`` is the class or ready module to use instead of the class named in the checkpoint;
    ``trust_code``: run the stored source where the program lacks that class.

    Raises:
        CheckpointError: there is no class, or its arguments could not be stored.
    """
    if isinstance(given, nn.Module):
        return given, {}
    if given is None and state["model_class"] is None:
        raise CheckpointError(
            f"{str(path)!r} was saved with a ready module, so it does not say how to build "
            f"one: pass model_class=, a class or a ready module."
        )
    code = state["model_code"]
    if code is None or not trust_code:
        return _resolve_model(state, given)
    try:
        return _resolve_model(state, given, search_subclasses=False)
    except CheckpointError:
        with import_stored_source(code):
            return _resolve_model(state, given, search_subclasses=False)


def _resolve_model(
    state: Mapping[str, Any], given: Any, *, search_subclasses: bool = True
) -> tuple[Any, dict[str, Any]]:
    remedy = "pass model_class="
    if state["model_code"] is not None:
        remedy += (
            ", or trust_code=True, which runs the source of the model in the file: read it first "
            "(torch.load(path)['model_code'])"
        )
    if given is None:
        given = resolve_class(
            state["model_class"], nn.Module, remedy, search_subclasses=search_subclasses
        )
    return given, decode_kwargs(state, "model")


def rebuild_parts(handler: BaseHandler, state: Mapping[str, Any], skip_parts: SkipParts) -> None:
    """Give a new handler the optimizer, scheduler, loss, SDE and sampler of a checkpoint.

    Raises:
        CheckpointError: a class is not imported or of the wrong kind.
    """
    if state["optimizer_class"] is not None and not skip_parts.optimizer:
        _rebuild_optimizer(handler, state)
        if state["scheduler_class"] is not None and not skip_parts.scheduler:
            _rebuild_scheduler(handler, state)
    saved = state["loss"]
    if saved is not None and saved.get("call_kwargs") is not None:
        remedy = "call set_loss_fn after loading"
        weights = state["model_state_dict"]
        with bounded_build(weights), as_build_error("loss", remedy):
            loss = resolve_class(saved["class"], nn.Module, remedy)(**decode(saved["kwargs"]))
            call_kwargs = decode(saved["call_kwargs"])
            handler.parts.set_loss(loss, saved["pass_epoch"], call_kwargs)
    if not skip_parts.sampler_sde:
        rebuild_generative(handler.parts.generative, state)


def _rebuild_optimizer(handler: BaseHandler, state: Mapping[str, Any]) -> None:
    remedy = "pass skip_optimizer=True and call set_optimizer yourself"
    cls = resolve_class(state["optimizer_class"], Optimizer, remedy)
    groups = checked_groups(decode(state.get("optimizer_groups")))
    if groups is not None and not are_of_model(groups):
        warnings.warn(
            "the optimizer in the checkpoint has parameters that are not the model's: call "
            "set_optimizer before fit, which then goes on with the optimizer's state.",
            stacklevel=2,
        )
        return
    with as_build_error("optimizer", remedy):
        make = None if groups is None else partial(make_groups, groups)
        handler.parts.set_optimizer(cls, decode_kwargs(state, "optimizer"), make)


def _rebuild_scheduler(handler: BaseHandler, state: Mapping[str, Any]) -> None:
    if state["scheduler_kwargs"] is None:
        warnings.warn(
            f"the arguments of the scheduler {state['scheduler_class']!r} could not be stored: "
            f"call set_scheduler before fit, which then goes on with the scheduler's state.",
            stacklevel=2,
        )
        return
    remedy = "pass skip_scheduler=True and call set_scheduler yourself"
    cls = resolve_class(state["scheduler_class"], LRScheduler, remedy)
    with as_build_error("scheduler", remedy):
        handler.parts.set_scheduler(
            cls,
            decode_kwargs(state, "scheduler"),
            state.get("scheduler_interval", "epoch"),
            state.get("scheduler_monitor"),
        )
    handler.parts.scheduler_strict = state.get("scheduler_strict") is not False
