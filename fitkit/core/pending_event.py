"""An event that is being fired while the handler is saved, and who has yet to hear it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_entries import describe, match_entries
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event
from fitkit.core.logs import Logs

Listener = tuple[Callback, Callable[..., None]]
# an event with its arguments and the listeners that are still to be called
Fired = tuple[Event, tuple[Any, ...], Iterator[Listener]]


def describe_pending_event(
    current: Sequence[Fired], callbacks: Sequence[Callback]
) -> dict[str, Any] | None:
    """The event for a checkpoint, and which of its listeners are still to be called.

    Args:
        current: the events that are being fired, the outermost first.
        callbacks: those that listen to the outermost.

    Raises:
        ConfigurationError: a hook of an evaluation saves that itself runs in a hook, whose rest no
            resume could repeat.
    """
    event, args, remaining = current[0]
    inner = [event.value for event, *_ in current[1:]]
    if inner and inner != [Event.CHECKPOINT_SAVED.value]:
        raise ConfigurationError(
            f"the handler cannot be saved in {inner[-1]} of an evaluation that a callback runs in "
            f"{event.value}, because a resume could not finish that hook: save in {event.value}, "
            f"after the evaluation."
        )
    waiting = [callback for callback, _ in copy(remaining)]
    if not waiting:
        return None
    listeners = [
        {**describe(callback), "waits": any(callback is other for other in waiting)}
        for callback in callbacks
    ]
    return {"event": event.value, "args": list(map(_plain, args)), "listeners": listeners}


def _plain(argument: Any) -> Any:
    if not isinstance(argument, Logs):
        return argument
    return dict(argument) or dict(Logs(argument.of_this_rank))


def waiting_ids(callbacks: Sequence[Callback], pending_event: Mapping[str, Any]) -> set[int]:
    """The ids of the callbacks that have yet to hear the pending event of a checkpoint."""
    entries = pending_event.get("listeners")
    if entries is None:  # fitkit 0.2 saved only those that wait, which are the last ones
        waiting = reversed(pending_event["waiting"])
        entries = [{"name": n, "identity": i, "waits": True} for n, i in waiting]
        callbacks = callbacks[::-1]
    pairs = match_entries(callbacks, entries)
    return {id(pair.callback) for pair in pairs if entries[pair.number]["waits"]}
