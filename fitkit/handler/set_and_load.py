"""Setting optimizer, scheduler and loss of a handler, and loading their states, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from fitkit.checkpointing.format.encoding import decode
from fitkit.core.errors import as_checkpoint_error
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.group_options import change_options, options_of, put_options
from fitkit.handler.optimizer_groups import Groups, add_groups, align, checked_groups
from fitkit.handler.optimizer_state import load_optimizer, require_class, require_loadable
from fitkit.handler.parts import ParameterGroups, Parts
from fitkit.handler.saved_schedule import SavedSchedule
from fitkit.handler.scheduler_start import has_schedulers

_LOSS_KEYS = ("loss_state_dict", "loss_ema_state_dict")
_OPTIMIZER = ("optimizer_class", "optimizer_state_dict", "optimizer_groups")


def require_optimizer(parts: Parts, checkpoint: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` unless the optimizer could have the state in ``checkpoint``."""
    saved, optimizer = checkpoint["optimizer_state_dict"], parts.optimizer
    if optimizer is None or saved is None:
        return
    require_class(optimizer, checkpoint["optimizer_class"])
    groups = checked_groups(checkpoint.get("optimizer_groups"))
    if groups is None:
        require_loadable(optimizer, saved)
    else:
        saved, added = align(parts, saved, groups)
        own = [*optimizer.param_groups[: len(parts.built_options)], *added]
        require_loadable(optimizer, saved, own)


def load_optimizer_part(handler: BaseHandler, checkpoint: Mapping[str, Any]) -> None:
    """Load the optimizer of a checkpoint, or let its state wait until the optimizer is set."""
    parts, session = handler.parts, handler.session
    saved: dict[str, Any] | None = decode(checkpoint["optimizer_state_dict"])
    if not saved:
        return
    if parts.optimizer is None:
        session.pending["optimizer"] = {key: checkpoint.get(key) for key in _OPTIMIZER}
        return
    groups = checked_groups(decode(checkpoint.get("optimizer_groups")))
    if groups is None:
        load_optimizer(parts.optimizer, saved)
        return
    session.part_changes = {
        **session.part_changes,
        "optimizer": _load_groups(parts, parts.optimizer, saved, groups),
    }


def _load_groups(
    parts: Parts, optimizer: Optimizer, saved: dict[str, Any], groups: Groups
) -> list[str]:
    saved, added = align(parts, saved, groups)
    sentences = add_groups(optimizer, len(parts.built_options), added)
    load_optimizer(optimizer, saved)
    before = [group["options"] for group in groups]
    return sentences + change_options(optimizer, before, parts.built_options)


def load_scheduler_part(handler: BaseHandler, checkpoint: Mapping[str, Any]) -> None:
    """Bring the scheduler to where the run in a checkpoint stands.

    Until the next ``fit``, a scheduler that is set goes on with this schedule too.
    """
    optimizer = handler.parts.optimizer
    schedule = SavedSchedule.of(checkpoint, None)
    _load_schedule(handler, schedule)
    if schedule.state is not None:
        options = None if optimizer is None else options_of(optimizer)
        handler.session.pending["schedule"] = replace(schedule, options=options)


def drop_missing_scheduler(handler: BaseHandler) -> None:
    """After the load of a resume: a scheduler that the program has no more ends.

    The options of the optimizer are then those of the program.
    """
    parts, session = handler.parts, handler.session
    schedule: SavedSchedule | None = session.pending.get("schedule")
    if schedule is None or parts.scheduler_spec is not None or schedule.built is None:
        return
    del session.pending["schedule"]
    if parts.optimizer is not None:
        put_options(parts.optimizer, parts.built_options)
    session.part_changes = {
        **session.part_changes,
        "scheduler": [f"scheduler: {schedule.name} -> none"],
    }


def set_optimizer(
    handler: BaseHandler, cls: type[Any], kwargs: Mapping[str, Any], groups: ParameterGroups | None
) -> None:
    """Set the optimizer; it gets a state that waits for it, and so does its scheduler."""
    parts, pending = handler.parts, handler.session.pending
    parts.set_optimizer(cls, kwargs, groups)
    waiting, schedule = pending.get("optimizer"), pending.get("schedule")
    if waiting is not None:
        require_optimizer(parts, waiting)
        load_optimizer_part(handler, waiting)
        del pending["optimizer"]
    if schedule is not None and parts.optimizer is not None:
        if waiting is None and schedule.options is not None and schedule.built is not None:
            put_options(parts.optimizer, schedule.options)
            change_options(parts.optimizer, schedule.built, parts.built_options)
        pending["schedule"] = replace(schedule, options=options_of(parts.optimizer))
        _load_schedule(handler, pending["schedule"])


def set_scheduler(
    handler: BaseHandler,
    cls: type[Any],
    kwargs: Mapping[str, Any],
    interval: str,
    monitor: str | None,
) -> None:
    """Set the scheduler; one that is set after a load goes on with the schedule in the file."""
    parts = handler.parts
    schedule: SavedSchedule | None = handler.session.pending.get("schedule")
    if schedule is not None and parts.optimizer is not None and not has_schedulers(kwargs):
        put_options(parts.optimizer, parts.built_options)  # it is built with the first rates
    parts.set_scheduler(cls, kwargs, interval, monitor)
    if schedule is not None:
        _load_schedule(handler, schedule)


def _load_schedule(handler: BaseHandler, schedule: SavedSchedule) -> None:
    session = handler.session
    changes = schedule.load_into(handler.parts)
    session.part_changes = {**session.part_changes, "scheduler": changes}


def set_loss(
    handler: BaseHandler, function: Any, pass_epoch: bool, kwargs: Mapping[str, Any], weight: Any
) -> None:
    """Set the loss, which gets states that wait for it; an error leaves the one that was set."""
    parts, before = handler.parts, handler.parts.loss
    parts.set_loss(function, pass_epoch, kwargs, weight)
    try:
        _load_waiting_loss(handler)
    except BaseException:
        parts.loss = before
        raise
    for key in _LOSS_KEYS:  # of a module in whose place a function was set
        handler.session.pending.pop(key, None)


def load_loss_part(handler: BaseHandler, key: str, state: dict[str, Any] | None) -> None:
    """Load a state of the loss, or let it wait until the loss is set."""
    handler.session.pending[key] = state
    _load_waiting_loss(handler)


def _load_waiting_loss(handler: BaseHandler) -> None:
    weights, pending = handler.weights, handler.session.pending
    if weights.loss_module is None:
        return
    for key, load in zip(_LOSS_KEYS, (weights.load_loss, weights.load_loss_ema), strict=True):
        if key in pending:
            with as_checkpoint_error("the loss in the checkpoint cannot be read"):
                load(pending[key])
            del pending[key]
