"""Entries: what a checkpoint says of a callback, and which callback each of them belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError
from fitkit.core.state_placement import device_tensor_paths

_MODES = {"min", "max"}

# name, identity and config; in the states of callbacks also state and on_device
CallbackEntry = Mapping[str, Any]


class Pair(NamedTuple):
    """A callback, and the number of the entry that belongs to it.

    ``is_by_order``: its configuration has changed, and others of its identity have changed, too, so
    only their order tells whose entry is whose.
    """

    callback: Callback
    number: int
    is_by_order: bool = False


def describe(callback: Callback) -> dict[str, Any]:
    """The entry of a callback without its state."""
    identity, config = callback.identity(), callback.known_config()
    return {"name": callback.name, "identity": identity, "config": config}


def entry_of(callback: Callback) -> dict[str, Any] | None:
    """A callback's entry in a checkpoint; ``None`` without a state."""
    state: object = callback.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(
            f"state_dict of callback {callback.name!r} must return a dict, received "
            f"{type(state).__name__}: return {{}} if there is nothing to keep."
        )
    if not state:
        return None
    entry = {**describe(callback), "state": state}
    on_device = device_tensor_paths(state)  # a checkpoint is read to the host
    return {**entry, "on_device": on_device} if on_device else entry


def label(entry: CallbackEntry) -> str:
    """Name and identity, for messages."""
    return f"{entry['name']} ({entry['identity']})" if entry["identity"] else str(entry["name"])


def match_entries(callbacks: Sequence[Callback], entries: Sequence[CallbackEntry]) -> list[Pair]:
    """Which entry belongs to which callback.

    First those of the same name, identity and configuration, then those of the same name and
    identity, both in the order of the two lists. Nothing else is a match: another identity is
    another meaning.
    """
    pairs: list[Pair] = []
    for fits in (is_same, _means_the_same):
        left = [c for c in callbacks if not any(c is pair.callback for pair in pairs)]
        free = [n for n in range(len(entries)) if not any(n == pair.number for pair in pairs)]
        candidates = [[n for n in free if fits(callback, entries[n])] for callback in left]
        taken: set[int] = set()
        for callback, numbers in zip(left, candidates, strict=True):
            number = next((n for n in numbers if n not in taken), None)
            if number is not None:
                taken.add(number)
                is_only = len(numbers) == sum(number in others for others in candidates) == 1
                has_changed = fits is not is_same and "config" in entries[number]
                pairs.append(Pair(callback, number, has_changed and not is_only))
    return pairs


def is_same(callback: Callback, entry: CallbackEntry) -> bool:
    """Whether name, identity and configuration are those of the entry."""
    if (entry["name"], entry["identity"]) != (callback.name, callback.identity()):
        return False
    return not changes(callback, entry)


def _means_the_same(callback: Callback, entry: CallbackEntry) -> bool:
    if entry["name"] != callback.name:
        return False
    if "config" in entry:
        return bool(entry["identity"] == callback.identity())
    # in fitkit 0.2 the whole configuration followed in the identity, that of savers had no mode
    words, saved = callback.identity().split(" "), entry["identity"].split(" ")
    begin, last = saved[: len(words)], saved[len(words) - 1 :][:1]
    without_mode = words[-1] in _MODES and not {*last} & _MODES and begin[:-1] == words[:-1]
    return words in ([""], begin) or without_mode


def changes(callback: Callback, entry: CallbackEntry) -> dict[str, tuple[Any, Any]]:
    """The arguments that are not as in the entry, as ``(saved, own)``; unknown ones are left out.

    Either side may not know an argument, because it is of another version.
    """
    saved, own = entry.get("config", {}), callback.known_config()
    pairs = {name: (saved[name], own[name]) for name in own if name in saved}
    # NaN equals NaN
    return {
        n: both
        for n, both in pairs.items()
        if both[0] != both[1] and repr(both[0]) != repr(both[1])
    }
