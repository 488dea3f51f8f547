"""CallbackList: calls the hooks of callbacks in order, and keeps their states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_states import CallbackStates, entry_of
from fitkit.core.errors import ConfigurationError, add_note, listed
from fitkit.core.event import Event
from fitkit.core.logs import Logs

Hook = Callable[..., None]
Listener = tuple[Callback, Hook]

# The run's position moves on before these events, so a resume does not fire them again.
_NOT_REPEATED_BY_RESUME = (
    Event.EPOCH_BEGIN,
    Event.TRAIN_BATCH_END,
    Event.TEST_BEGIN,
    Event.TEST_BATCH_END,
    Event.TEST_END,
    Event.EPOCH_END,
)


class CallbackList(CallbackStates):
    """Callbacks in the order in which their hooks are called.

    A table holds only the hooks that are overridden, so an event without listeners costs one
    lookup.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        super().__init__()
        self._flush_saves: Callable[[], None] | None = None
        # the event that is being fired, its arguments and the listeners that are still to be called
        self._current_event: tuple[Event, tuple[Any, ...], Iterator[Listener]] | None = None
        self._table: dict[Event, tuple[Listener, ...]] = {}
        self._rebuild()
        for callback in callbacks:
            self.add(callback)

    def __iter__(self) -> Iterator[Callback]:
        return iter(tuple(self._callbacks))

    def __len__(self) -> int:
        return len(self._callbacks)

    def __contains__(self, callback: object) -> bool:
        return any(callback is other for other in self._callbacks)

    def __getitem__(self, index: int) -> Callback:
        return self._callbacks[index]

    def add(self, callback: Callback) -> None:
        """Add a callback; if a loaded checkpoint has its state, that is restored.

        Raises:
            ConfigurationError: it is not a ``Callback`` instance, or was already added.
        """
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise ConfigurationError(
                f"expected a Callback instance, received the class {name}: write {name}(...)."
            )
        if not isinstance(callback, Callback):
            raise ConfigurationError(
                f"expected a fitkit Callback, received {type(callback).__name__}: subclass "
                f"fitkit.Callback, or use LambdaCallback for plain functions."
            )
        if callback in self:
            raise ConfigurationError(f"callback {callback.name!r} was already added: add it once.")
        self._callbacks.append(callback)
        self._rebuild()
        try:
            self._claim_exact(callback)
        except BaseException:
            self.remove(callback)
            raise

    def remove(self, callback: Callback) -> None:
        """Remove a callback.

        Raises:
            ConfigurationError: it was not added.
        """
        if callback not in self:
            raise ConfigurationError(
                f"callback {getattr(callback, 'name', callback)!r} is not attached; attached are "
                f"{listed(other.name for other in self._callbacks)}."
            )
        self._callbacks = [other for other in self._callbacks if other is not callback]
        self._restored.discard(id(callback))
        self._rebuild()

    def detach(self, callbacks: Iterable[Callback]) -> None:
        """Remove the callbacks of one call of ``fit``; checkpoints still contain their states."""
        for callback in callbacks:
            self.remove(callback)
            if entry := entry_of(callback):
                self.detached_states.append(entry)

    def make_undo(self, *, undo_hooks: bool = False) -> Callable[[], None]:
        """Return a function that restores states, the list, and the table of hooks."""
        restore_states, flush_saves = super().make_undo(undo_hooks=undo_hooks), self._flush_saves

        def undo() -> None:
            restore_states()
            self._flush_saves = flush_saves
            self._rebuild()

        return undo

    def _rebuild(self) -> None:
        self._callbacks.sort(key=lambda callback: callback.order)
        self._table = {
            event: tuple(
                (callback, getattr(callback, event.value))
                for callback in self._callbacks
                if _overrides(callback, event)
            )
            for event in Event
        }

    def bind(
        self, handler: Any, params: Mapping[str, Any], flush_saves: Callable[[], None] | None
    ) -> None:
        """Set ``handler`` and ``params`` of all callbacks, and what is called after each event."""
        for callback in self._callbacks:
            callback.handler = handler
            callback.params = params
        self._flush_saves = flush_saves
        self._rebuild()

    def listens(self, event: Event) -> bool:
        """Whether any callback overrides the hook of ``event``."""
        return bool(self._table[event])

    def fire(self, event: Event, *args: Any) -> None:
        """Call the hook of ``event`` of every callback that overrides it, then ``flush_saves``."""
        hooks = self._table[event]
        if not hooks:
            return
        outer, remaining = self._current_event, iter(hooks)
        self._current_event = (event, args, remaining)
        try:
            for callback, hook in remaining:  # noqa: B007  the error names the callback
                hook(*args)
        except BaseException as error:
            add_note(error, f"raised by callback {callback.name!r} in {event.value}")
            raise
        finally:
            self._current_event = outer
        if self._flush_saves is not None:
            self._flush_saves()

    def fire_to_all(self, event: Event, *args: Any) -> list[BaseException]:
        """As ``fire``, but call every hook even if others raise; return the errors."""
        errors: list[BaseException] = []
        for callback, hook in self._table[event]:
            try:
                hook(*args)
            except BaseException as error:  # noqa: BLE001  returned to the caller
                add_note(error, f"raised by callback {callback.name!r} in {event.value}")
                errors.append(error)
        if self._flush_saves is not None:
            try:
                self._flush_saves()
            except BaseException as error:  # noqa: BLE001  as above
                errors.append(error)
        return errors

    def pending_event(self) -> dict[str, Any] | None:
        """The event that is being fired, and the callbacks whose hooks are still to be called.

        A callback may save the handler inside a hook. A resume from that file calls the remaining
        hooks first (``replay_event``).
        """
        if self._current_event is None or self._current_event[0] not in _NOT_REPEATED_BY_RESUME:
            return None
        event, args, remaining = self._current_event
        waiting = [[c.name, c.identity()] for c, _ in copy(remaining)]
        plain_args = [dict(arg) if isinstance(arg, Logs) else arg for arg in args]
        return {"event": event.value, "args": plain_args, "waiting": waiting} if waiting else None

    def replay_event(self, pending_event: Mapping[str, Any]) -> None:
        """Call the hooks that ``pending_event`` of a checkpoint names."""
        event = Event(pending_event["event"])
        args = [Logs(arg) if isinstance(arg, dict) else arg for arg in pending_event["args"]]
        for callback, hook in self._table[event]:
            if [callback.name, callback.identity()] in pending_event["waiting"]:
                hook(*args)


def _overrides(callback: Callback, event: Event) -> bool:
    """Whether the class or the instance overrides the empty hook of ``Callback``."""
    hook = getattr(callback, event.value)
    return getattr(hook, "__func__", hook) is not getattr(Callback, event.value)
