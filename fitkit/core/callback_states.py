"""CallbackStates: the states of callbacks, saved to and restored from checkpoints."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fitkit.core.callback import Callback
from fitkit.core.callback_entries import (
    CallbackEntry,
    changes,
    describe,
    entry_of,
    is_same,
    label,
    match_entries,
)
from fitkit.core.errors import CheckpointError, add_note, listed
from fitkit.core.state_placement import copy_to_host, move_paths, place_like
from fitkit.core.tree import map_tensors

_HOST = torch.device("cpu")


def _unchanged(value: Any) -> Any:
    return value


class CallbackStates:
    """Saves the states of callbacks and gives restored states to the callbacks they belong to.

    A state goes to the callback that ``match_entries`` finds for it. States without a callback are
    kept and saved again.

    Attributes:
        detached_states: states of the callbacks of the last call of ``fit``, which were removed.
        unclaimed: states of a checkpoint for which no callback was added so far.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callback] = []
        self._restored: dict[int, CallbackEntry] = {}  # by the id of the callback
        self._is_loaded = False
        self._changes: list[str] = []
        self._run = object()
        self._device = _HOST
        self._decode: Callable[[Any], Any] = _unchanged
        self.detached_states: list[dict[str, Any]] = []
        self.unclaimed: dict[str, dict[str, Any]] = {}

    def adopt(self, callback: Callback) -> None:
        """Treat a callback's state as that of this run, so that ``begin`` does not reset it."""
        callback.remember_initial_state()
        callback.run = self._run

    def begin(
        self,
        check: Callable[[Any, str], object] | None = None,
        hint: Callable[[Mapping[str, Any]], str] = lambda _: "",
    ) -> None:
        """Before the first hook of a ``fit``: hand out restored states, reset the other callbacks.

        Warnings name the callbacks whose state has another meaning in the checkpoint, and the
        states for which no callback is attached; all of these are kept.

        Args:
            check: called with each state and its name; raises an error if it can never be saved.
            hint: how to attach the callback of an entry that is not attached, if there is a way.
        """
        for callback in self._callbacks:
            callback.remember_initial_state()
            callback.remember_config()
        self._claim_rest()
        anew = [callback for callback in self._callbacks if not self._goes_on(callback)]
        for callback in anew:
            callback.reset()
        for callback in self._callbacks:
            entry = entry_of(callback)
            if check is not None and entry is not None:
                check(entry["state"], f"callback {callback.name!r} cannot be saved: state")
        self._changes = self._list_changes(anew) if self._is_loaded else []
        if self._is_loaded:
            self._warn_of_leftovers(anew, hint)
        for callback in self._callbacks:
            callback.run = self._run
        self.detached_states, self._is_loaded = [], False
        self._restored.clear()

    def config_changes(self) -> list[str]:
        """How the callbacks differ from those of the checkpoint that the last ``begin`` resumed.

        One line for each argument that has changed, and for each callback with a state that was
        added or removed; empty if nothing was resumed.
        """
        return list(self._changes)

    def state_dict(self, without: Callback | None = None) -> dict[str, dict[str, Any]]:
        """The states of attached callbacks, with detached and unclaimed ones, by key."""
        states: dict[str, dict[str, Any]] = {}
        for callback in self._callbacks:
            if callback is not without and (entry := entry_of(callback)):
                states[_unused_key(callback.name, states)] = entry
        for entry in (*self.detached_states, *self.unclaimed.values()):
            states[_unused_key(entry["name"], states)] = entry
        return states

    def key_of(self, callback: Callback) -> str:
        """The key of an attached callback's state in ``state_dict``."""
        keys: dict[str, Callback] = {}
        for other in self._callbacks:
            if other is callback or entry_of(other):
                keys[_unused_key(other.name, keys)] = other
        return next(key for key, other in keys.items() if other is callback)

    def load_state_dict(
        self,
        states: Mapping[str, dict[str, Any]],
        device: torch.device = _HOST,
        decode: Callable[[Any], Any] = _unchanged,
    ) -> None:
        """Give states to the attached callbacks and keep the others for callbacks added later.

        Tensors that were on the device of the saved handler go to ``device``. A state is decoded
        when its callback is there, as it may name classes that only the script of training has.
        """
        for key, entry in states.items():
            kinds = {"name": str, "identity": str, "state": dict}
            is_valid = all(isinstance(entry.get(part), kind) for part, kind in kinds.items())
            if not is_valid or not isinstance(entry.get("config", {}), dict):
                raise CheckpointError(
                    f"the state of callback {key!r} in the checkpoint must be a dict with name, "
                    f"identity and state: the file was altered, use another."
                )
        self._device, self._decode, self._is_loaded = device, decode, True
        self.unclaimed = {key: dict(entry) for key, entry in states.items()}
        self._restored.clear()
        for callback in self._callbacks:
            self._claim_exact(callback)

    def make_undo(self, *, undo_hooks: bool = False) -> Callable[[], None]:
        """Return a function that undoes any ``load_state_dict`` that follows.

        Args:
            undo_hooks: also undo what hooks change, and added or removed callbacks.
        """
        callbacks, run, detached_states = list(self._callbacks), self._run, self.detached_states
        unclaimed, restored = dict(self.unclaimed), dict(self._restored)
        is_loaded = self._is_loaded
        backups = [(c, dict(vars(c)), _backup(c, undo_hooks=undo_hooks)) for c in callbacks]

        def undo() -> None:
            for callback, attributes, backup in backups:
                vars(callback).clear()
                vars(callback).update(attributes)
                # a load_state_dict of its own; if it refused the state, it has changed nothing
                was_custom_loaded = not callback.state_fields and id(callback) in self._restored
                if backup is not None and (undo_hooks or was_custom_loaded):
                    callback.load_state_dict(place_like(*backup))
            self._callbacks, self._run, self.detached_states = callbacks, run, detached_states
            self.unclaimed, self._restored, self._is_loaded = unclaimed, restored, is_loaded

        return undo

    def _claim_exact(self, callback: Callback) -> None:
        for key, entry in self.unclaimed.items():
            if is_same(callback, entry):
                self._give(key, callback)
                return

    def _claim_rest(self) -> None:
        """Hand out the states that are left, now that all callbacks are known."""
        waiting = [c for c in self._callbacks if id(c) not in self._restored]
        keys = list(self.unclaimed)
        pairs = match_entries(waiting, [self.unclaimed[key] for key in keys])
        by_order = [label(describe(pair.callback)) for pair in pairs if pair.is_by_order]
        if by_order:
            warnings.warn(
                f"the configuration of several callbacks has changed, so their states were handed "
                f"out by their order: {listed(by_order)}. Give each a name of its own, and its "
                f"state follows the name.",
                stacklevel=3,
            )
        for pair in pairs:
            self._give(keys[pair.number], pair.callback)

    def _goes_on(self, callback: Callback) -> bool:
        """Whether a callback keeps its state in the ``fit`` that begins."""
        return id(callback) in self._restored or (callback.spans_fits and callback.run is self._run)

    def _list_changes(self, anew: Iterable[Callback]) -> list[str]:
        names = [callback.name for callback in self._callbacks]
        lines = []
        for callback in self._callbacks:
            saved_entry = self._restored.get(id(callback), {})
            is_only = names.count(callback.name) == 1
            name = callback.name if is_only else label(describe(callback))
            for argument, (saved, own) in changes(callback, saved_entry).items():
                lines.append(f"{name} {argument}: {saved!r} -> {own!r}")
        lines += [f"{label(entry)}: removed" for entry in self.unclaimed.values()]
        added = [entry for callback in anew if (entry := entry_of(callback)) is not None]
        return [*lines, *(f"{label(entry)}: added" for entry in added)]

    def _warn_of_leftovers(
        self, anew: Iterable[Callback], hint: Callable[[Mapping[str, Any]], str]
    ) -> None:
        changed, named = [], set()
        for callback in anew:
            others = {k: e for k, e in self.unclaimed.items() if e["name"] == callback.name}
            if others:
                named |= set(others)
                saved = listed(label(entry) for entry in others.values())
                changed.append(f"{label(describe(callback))!r} instead of {saved}")
        if changed:
            warnings.warn(
                f"callbacks begin anew, because the state in the checkpoint has another meaning: "
                f"{', '.join(changed)}. It is kept and saved again; a callback with a name of its "
                f"own (name=) keeps its state when its file is renamed.",
                stacklevel=3,
            )
        if left := [key for key in self.unclaimed if key not in named]:
            hints = dict.fromkeys(hint(self.unclaimed[key]) for key in left)
            warnings.warn(
                f"the checkpoint holds the state of callbacks that are not attached: "
                f"{listed(left)}. They are kept and saved again; attach the callbacks to go on "
                f"with them.{''.join(hints)}",
                stacklevel=3,
            )

    def _give(self, key: str, callback: Callback) -> None:
        callback.remember_initial_state()
        entry = self.unclaimed[key]
        try:
            state = self._decode(entry["state"])
            callback.load_state_dict(move_paths(state, entry.get("on_device", ()), self._device))
        except BaseException as error:
            add_note(error, f"raised while the state of callback {callback.name!r} was restored")
            raise
        del self.unclaimed[key]
        self._restored[id(callback)] = {**entry, "state": {}}  # the state may be large


def _backup(callback: Callback, *, undo_hooks: bool) -> tuple[Any, Any] | None:
    """A copy of a callback's state, and the state; ``None`` where its attributes are enough."""
    entry = entry_of(callback) if undo_hooks or not callback.state_fields else None
    if entry is None:
        return None
    # on the host: the device may have no room for a second copy, such as of the best weights
    return copy.deepcopy(map_tensors(copy_to_host, entry["state"])), entry["state"]


def _unused_key(name: str, taken: Mapping[str, Any]) -> str:
    key, number = name, 2
    while key in taken:
        key, number = f"{name}_{number}", number + 1
    return key
