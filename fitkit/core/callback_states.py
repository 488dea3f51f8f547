"""CallbackStates: whose state is whose, in a run and in a checkpoint."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fitkit.core.callback import Callback
from fitkit.core.devices import moved, on_host, paths_off_host, placed_like
from fitkit.core.errors import CheckpointError, add_note, listed
from fitkit.core.tree import map_tensors

_HOST = torch.device("cpu")


class CallbackStates:
    """The states of callbacks, and their way to the callbacks that own them.

    A state is given to the callback of its name and identity; if the configuration has changed, to
    those of its name in order. States that nobody owns wait, and are saved again.

    Attributes:
        departed: states of the callbacks of the last call of ``fit``, which are here no more.
        unclaimed: states of a checkpoint whose callbacks are not here yet.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callback] = []
        self._restored: set[int] = set()
        self._run = object()
        self._device = _HOST
        self.departed: list[dict[str, Any]] = []
        self.unclaimed: dict[str, dict[str, Any]] = {}

    def adopt(self, callback: Callback) -> None:
        """Take a callback's progress for that of this run, so that ``begin`` does not reset it."""
        callback.remember_initial_state()
        callback.run = self._run

    def begin(self) -> None:
        """Before the first hook of a ``fit``: give waiting states to their owners, reset the rest.

        States for which no owner is attached are named in one warning and kept.
        """
        for callback in self._callbacks:
            callback.remember_initial_state()
        self._claim_by_name()
        for callback in self._callbacks:
            goes_on = callback.spans_fits and callback.run is self._run
            if id(callback) not in self._restored and not goes_on:
                callback.reset()
            callback.run = self._run
        self.departed = []
        self._restored.clear()
        if self.unclaimed:
            warnings.warn(
                f"the checkpoint holds the state of callbacks that are not attached: "
                f"{listed(self.unclaimed)}. They are kept and saved again; attach the callbacks to "
                f"go on with them.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The states of the callbacks, of those that departed, and of those that nobody claimed."""
        states: dict[str, dict[str, Any]] = {}
        for callback in self._callbacks:
            if entry := entry_of(callback):
                states[_free_key(callback.name, states)] = entry
        for kept in (*self.departed, *self.unclaimed.values()):
            states[_free_key(kept["name"], states)] = kept
        return states

    def key_of(self, callback: Callback) -> str:
        """The key under which ``state_dict`` holds the state of a callback that is here."""
        keys: dict[str, Callback] = {}
        for one in self._callbacks:
            if one is callback or entry_of(one):
                keys[_free_key(one.name, keys)] = one
        return next(key for key, one in keys.items() if one is callback)

    def load_state_dict(
        self, states: Mapping[str, dict[str, Any]], device: torch.device = _HOST
    ) -> None:
        """Keep states until their owners are known; those attached already are looked at now.

        Args:
            states: as a checkpoint holds them.
            device: the handler's, where tensors go that were on the handler's device.
        """
        for key, entry in states.items():
            kinds = {"name": str, "identity": str, "state": dict}
            if not all(isinstance(entry.get(part), kind) for part, kind in kinds.items()):
                raise CheckpointError(f"the state of callback {key!r} in the checkpoint is none.")
        self._device = device
        self.unclaimed = {key: dict(entry) for key, entry in states.items()}
        self._restored.clear()
        for callback in self._callbacks:
            self._claim_exact(callback)

    def remember(self, *, heard: bool = False) -> Callable[[], None]:
        """A function that undoes whatever ``load_state_dict`` does from now on.

        Args:
            heard: also what callbacks are told, and which are here.
        """
        here, run, departed = list(self._callbacks), self._run, self.departed
        unclaimed, restored = dict(self.unclaimed), set(self._restored)
        held = [(callback, dict(vars(callback)), _kept(callback, heard=heard)) for callback in here]

        def undo() -> None:
            for callback, attributes, kept in held:
                vars(callback).clear()
                vars(callback).update(attributes)
                # one with a way of its own; if it refused its state, it has changed nothing
                has_own_way = not callback.state_fields and id(callback) in self._restored
                if kept is not None and (heard or has_own_way):
                    callback.load_state_dict(placed_like(*kept))
            self._callbacks, self._run, self.departed = here, run, departed
            self.unclaimed, self._restored = unclaimed, restored

        return undo

    def _claim_exact(self, callback: Callback) -> None:
        for key, entry in self.unclaimed.items():
            if entry["name"] == callback.name and entry["identity"] == callback.identity():
                self._give(key, callback)
                return

    def _claim_by_name(self) -> None:
        """States whose configuration has changed go to the callbacks of their name, in order."""
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
            state = moved(entry["state"], entry.get("on_device", ()), self._device)
            callback.load_state_dict(state)
        except BaseException as error:
            add_note(error, f"raised while the state of callback {callback.name!r} was restored")
            raise
        del self.unclaimed[key]
        self._restored.add(id(callback))


def _kept(callback: Callback, *, heard: bool) -> tuple[Any, Any] | None:
    """A copy of a callback's state in memory of the host, with the state itself.

    ``None`` where there is none, or where putting back the attributes puts back the state.
    """
    entry = entry_of(callback) if heard or not callback.state_fields else None
    if entry is None:
        return None
    return copy.deepcopy(map_tensors(on_host, entry["state"])), entry["state"]


def entry_of(callback: Callback) -> dict[str, Any] | None:
    """A callback's state with whose it is; ``None`` if it keeps none."""
    state: object = callback.state_dict()
    if not isinstance(state, dict):
        raise CheckpointError(
            f"state_dict of callback {callback.name!r} must return a dict, received "
            f"{type(state).__name__}: return {{}} if there is nothing to keep."
        )
    if not state:
        return None
    entry = {"name": callback.name, "identity": callback.identity(), "state": state}
    on_device = paths_off_host(state)  # a checkpoint is read into memory of the host
    return {**entry, "on_device": on_device} if on_device else entry


def _free_key(name: str, taken: Mapping[str, Any]) -> str:
    key, number = name, 2
    while key in taken:
        key, number = f"{name}_{number}", number + 1
    return key
