"""CallbackStates: the states of callbacks, saved to and restored from checkpoints."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError, add_note, listed
from fitkit.core.state_placement import copy_to_host, device_tensor_paths, move_paths, place_like
from fitkit.core.tree import map_tensors

_HOST = torch.device("cpu")


class CallbackStates:
    """Saves the states of callbacks and gives restored states to the callbacks they belong to.

    A state goes to the callback with its name and identity; if the configuration has changed, to
    the callbacks with its name, in order. States without a callback are kept and saved again.

    Attributes:
        detached_states: states of the callbacks of the last call of ``fit``, which were removed.
        unclaimed: states of a checkpoint for which no callback was added so far.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callback] = []
        self._restored: set[int] = set()
        self._run = object()
        self._device = _HOST
        self.detached_states: list[dict[str, Any]] = []
        self.unclaimed: dict[str, dict[str, Any]] = {}

    def adopt(self, callback: Callback) -> None:
        """Treat a callback's state as that of this run, so that ``begin`` does not reset it."""
        callback.remember_initial_state()
        callback.run = self._run

    def begin(self) -> None:
        """Before the first hook of a ``fit``: hand out restored states, reset the other callbacks.

        One warning names the states for which no callback is attached; they are kept.
        """
        for callback in self._callbacks:
            callback.remember_initial_state()
        self._claim_by_name()
        for callback in self._callbacks:
            goes_on = callback.spans_fits and callback.run is self._run
            if id(callback) not in self._restored and not goes_on:
                callback.reset()
            callback.run = self._run
        self.detached_states = []
        self._restored.clear()
        if self.unclaimed:
            warnings.warn(
                f"the checkpoint holds the state of callbacks that are not attached: "
                f"{listed(self.unclaimed)}. They are kept and saved again; attach the callbacks to "
                f"go on with them.",
                stacklevel=2,
            )

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
        self, states: Mapping[str, dict[str, Any]], device: torch.device = _HOST
    ) -> None:
        """Give states to the attached callbacks and keep the others for callbacks added later.

        Tensors that were on the device of the saved handler go to ``device``.
        """
        for key, entry in states.items():
            kinds = {"name": str, "identity": str, "state": dict}
            if not all(isinstance(entry.get(part), kind) for part, kind in kinds.items()):
                raise CheckpointError(
                    f"the state of callback {key!r} in the checkpoint must be a dict with name, "
                    f"identity and state: the file was altered, use another."
                )
        self._device = device
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
        unclaimed, restored = dict(self.unclaimed), set(self._restored)
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
            self.unclaimed, self._restored = unclaimed, restored

        return undo

    def _claim_exact(self, callback: Callback) -> None:
        for key, entry in self.unclaimed.items():
            if entry["name"] == callback.name and entry["identity"] == callback.identity():
                self._give(key, callback)
                return

    def _claim_by_name(self) -> None:
        """Hand out the remaining states by name, for callbacks whose configuration has changed."""
        for callback in self._callbacks:
            if id(callback) not in self._restored:
                self._claim_exact(callback)
        for callback in self._callbacks:
            same_name = (key for key, e in self.unclaimed.items() if e["name"] == callback.name)
            key = next(same_name, None)
            if key is not None and id(callback) not in self._restored:
                self._give(key, callback)

    def _give(self, key: str, callback: Callback) -> None:
        callback.remember_initial_state()
        entry = self.unclaimed[key]
        try:
            state = move_paths(entry["state"], entry.get("on_device", ()), self._device)
            callback.load_state_dict(state)
        except BaseException as error:
            add_note(error, f"raised while the state of callback {callback.name!r} was restored")
            raise
        del self.unclaimed[key]
        self._restored.add(id(callback))


def _backup(callback: Callback, *, undo_hooks: bool) -> tuple[Any, Any] | None:
    """A copy of a callback's state, and the state; ``None`` where its attributes are enough."""
    entry = entry_of(callback) if undo_hooks or not callback.state_fields else None
    if entry is None:
        return None
    # on the host: the device may have no room for a second copy, such as of the best weights
    return copy.deepcopy(map_tensors(copy_to_host, entry["state"])), entry["state"]


def entry_of(callback: Callback) -> dict[str, Any] | None:
    """A callback's entry in a checkpoint: name, identity and state; ``None`` without a state."""
    state: object = callback.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(
            f"state_dict of callback {callback.name!r} must return a dict, received "
            f"{type(state).__name__}: return {{}} if there is nothing to keep."
        )
    if not state:
        return None
    entry = {"name": callback.name, "identity": callback.identity(), "state": state}
    on_device = device_tensor_paths(state)  # a checkpoint is read to the host
    return {**entry, "on_device": on_device} if on_device else entry


def _unused_key(name: str, taken: Mapping[str, Any]) -> str:
    key, number = name, 2
    while key in taken:
        key, number = f"{name}_{number}", number + 1
    return key
