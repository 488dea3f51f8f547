"""CallbackList: who hears what, in which order, and whose state is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_states import CallbackStates, entry_of
from fitkit.core.errors import ConfigurationError, add_note, listed
from fitkit.core.event import Event
from fitkit.core.logs import Logs

__all__ = ["CallbackList", "Event"]

Hook = Callable[..., None]
Listener = tuple[Callback, Hook]

# Events before which the run's position has moved on, so that a resume does not repeat them.
_AFTER_PROGRESS = (
    Event.EPOCH_BEGIN,
    Event.TRAIN_BATCH_END,
    Event.TEST_BEGIN,
    Event.TEST_BATCH_END,
    Event.TEST_END,
    Event.EPOCH_END,
)


class CallbackList(CallbackStates):
    """Callbacks in the order in which they hear events.

    A table of the hooks that are really overridden is built once, so an event that nobody listens
    to costs one lookup.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        super().__init__()
        self._after_event: Callable[[], None] | None = None
        # the event that is heard now, with its arguments and those who have yet to hear it
        self._under_way: tuple[Event, tuple[Any, ...], Iterator[Listener]] | None = None
        self._table: dict[Event, tuple[Listener, ...]] = {}
        self._rebuild()
        for callback in callbacks:
            self.add(callback)

    def __iter__(self) -> Iterator[Callback]:
        return iter(tuple(self._callbacks))

    def __len__(self) -> int:
        return len(self._callbacks)

    def __contains__(self, callback: object) -> bool:
        return any(callback is known for known in self._callbacks)

    def __getitem__(self, index: int) -> Callback:
        return self._callbacks[index]

    def add(self, callback: Callback) -> None:
        """Add a callback; a state in a loaded checkpoint that is plainly its own is given to it.

        Raises:
            ConfigurationError: it is not a ``Callback`` instance, or is already here.
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
            ConfigurationError: it is not here.
        """
        if callback not in self:
            raise ConfigurationError(
                f"callback {getattr(callback, 'name', callback)!r} is not attached; attached are "
                f"{listed(known.name for known in self._callbacks)}."
            )
        self._callbacks = [known for known in self._callbacks if known is not callback]
        self._restored.discard(id(callback))
        self._rebuild()

    def depart(self, callbacks: Iterable[Callback]) -> None:
        """Remove the callbacks of one call of ``fit``; what they knew stays part of the state."""
        for callback in callbacks:
            self.remove(callback)
            if entry := entry_of(callback):
                self.departed.append(entry)

    def remember(self, *, heard: bool = False) -> Callable[[], None]:
        """As that of the states; what hears which event is as it was too."""
        undo, after_event = super().remember(heard=heard), self._after_event

        def put_back() -> None:
            undo()
            self._after_event = after_event
            self._rebuild()

        return put_back

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
        self, handler: Any, params: Mapping[str, Any], after_event: Callable[[], None] | None
    ) -> None:
        """Introduce the callbacks to the handler that runs them.

        Args:
            handler: what ``callback.handler`` will be.
            params: what ``callback.params`` will be.
            after_event: called each time all callbacks have heard an event.
        """
        for callback in self._callbacks:
            callback.handler = handler
            callback.params = params
        self._after_event = after_event
        self._rebuild()

    def listens(self, event: Event) -> bool:
        """Whether any callback overrides the hook of ``event``."""
        return bool(self._table[event])

    def fire(self, event: Event, *args: Any) -> None:
        """Let every callback that overrides the hook hear ``event``, in order."""
        hooks = self._table[event]
        if not hooks:
            return
        outer, waiting = self._under_way, iter(hooks)
        self._under_way = (event, args, waiting)
        try:
            for callback, hook in waiting:  # noqa: B007  the error says whose hook it was
                hook(*args)
        except BaseException as error:
            add_note(error, f"raised by callback {callback.name!r} in {event.value}")
            raise
        finally:
            self._under_way = outer
        if self._after_event is not None:
            self._after_event()

    def fire_to_all(self, event: Event, *args: Any) -> list[BaseException]:
        """As ``fire``, but an error in one hook keeps no other callback from hearing the event."""
        errors: list[BaseException] = []
        for callback, hook in self._table[event]:
            try:
                hook(*args)
            except BaseException as error:  # noqa: BLE001  all must hear it; the caller raises
                add_note(error, f"raised by callback {callback.name!r} in {event.value}")
                errors.append(error)
        if self._after_event is not None:
            try:
                self._after_event()
            except BaseException as error:  # noqa: BLE001  as above
                errors.append(error)
        return errors

    def unheard(self) -> dict[str, Any] | None:
        """The event in whose middle we are, and the callbacks that have yet to hear it.

        A callback may save the handler from inside a hook: who resumes from that file lets the
        others hear the event first (``finish_event``).
        """
        if self._under_way is None or self._under_way[0] not in _AFTER_PROGRESS:
            return None
        event, args, listeners = self._under_way
        waiting = [[c.name, c.identity()] for c, _ in copy(listeners)]
        plain = [dict(arg) if isinstance(arg, Logs) else arg for arg in args]
        return {"event": event.value, "args": plain, "waiting": waiting} if waiting else None

    def finish_event(self, unheard: Mapping[str, Any]) -> None:
        """Let those hear an event who had not yet when a checkpoint was made in its middle."""
        event = Event(unheard["event"])
        args = [Logs(arg) if isinstance(arg, dict) else arg for arg in unheard["args"]]
        for callback, hook in self._table[event]:
            if [callback.name, callback.identity()] in unheard["waiting"]:
                hook(*args)


def _overrides(callback: Callback, event: Event) -> bool:
    """Whether the hook is more than the no-op of the base class, on the class or the instance."""
    hook = getattr(callback, event.value)
    return getattr(hook, "__func__", hook) is not getattr(Callback, event.value)
