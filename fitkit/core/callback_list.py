"""CallbackList: calls the hooks of callbacks in order, and keeps their states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_entries import entry_of
from fitkit.core.callback_states import CallbackStates
from fitkit.core.errors import ConfigurationError, add_note, listed
from fitkit.core.event import Event
from fitkit.core.logs import Logs
from fitkit.core.pending_event import Fired, Listener, describe_pending_event, waiting_ids

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
        # events that are being fired, the outermost first: with their arguments and the listeners
        # that are still to be called
        self._current: list[Fired] = []
        self._bound: tuple[Any, Mapping[str, Any]] = (None, {})
        self._table: dict[Event, tuple[Listener, ...]] = {}
        self._sharing: list[Callback] = []  # places in on_epoch_end
        self.may_log_on_another_rank = False
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

        One that a hook adds is called from the next event on. With several ranks it gets the logs
        of a batch only where a callback reads them that was there when ``fit`` began.

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
            if self._current:
                callback.handler, callback.params = self._bound
                self.adopt(callback)
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
        self._restored.pop(id(callback), None)
        self._rebuild()

    def extended(self, callbacks: Iterable[Callback]) -> CallbackList:
        """These callbacks and others, for one evaluation, which may run inside one of our hooks."""
        extended = CallbackList([*self._callbacks, *callbacks])
        extended._current = self._current
        return extended

    def detach(self, callbacks: Iterable[Callback]) -> None:
        """Remove the callbacks of one call of ``fit``; checkpoints still contain their states."""
        detached = list(callbacks)
        for callback in detached:
            self.remove(callback)
        self.detached_states += [entry for c in detached if (entry := entry_of(c))]

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
        # stable: the ranks share after the callbacks of the same order
        listeners = sorted([*self._callbacks, *self._sharing], key=lambda callback: callback.order)
        self._table = {
            event: tuple(
                (callback, getattr(callback, event.value))
                for callback in listeners
                if _overrides(callback, event)
            )
            for event in Event
        }

    def bind(
        self, handler: Any, params: Mapping[str, Any], flush_saves: Callable[[], None] | None
    ) -> None:
        """Set ``handler`` and ``params`` of all callbacks, and what is called after each event."""
        self._bound = (handler, params)
        for callback in self._callbacks:
            callback.handler, callback.params = self._bound
        self._flush_saves = flush_saves
        self._rebuild()

    def share_after(self, orders: Iterable[int], share: Callable[[], None]) -> None:
        """Call ``share`` in ``on_epoch_end`` after the callbacks of each of these orders."""
        self._sharing = [_sharing(order, share) for order in orders]
        self._rebuild()

    @property
    def may_log(self) -> bool:
        """Whether a callback, on any rank, may log values of its own in some epochs."""
        return self.may_log_on_another_rank or any(c.may_log for c in self._callbacks)

    def listens(self, event: Event) -> bool:
        """Whether any callback overrides the hook of ``event``."""
        return bool(self.listeners(event))

    def listeners(self, event: Event) -> list[Callback]:
        """The callbacks that override the hook of ``event``."""
        return [c for c, _ in self._table[event] if c not in self._sharing]

    @property
    def is_nested(self) -> bool:
        """Whether the event that is being fired began inside a hook of another one."""
        return len(self._current) > 1

    def fire(self, event: Event, *args: Any) -> None:
        """Call the hook of ``event`` of every callback that overrides it.

        Then call ``flush_saves``, unless this is inside a hook: there the outer event does it, when
        all callbacks have heard it.
        """
        if hooks := self._table[event]:
            self._call(event, args, hooks)
            if self._flush_saves is not None and not self._current:
                self._flush_saves()

    def _call(self, event: Event, args: tuple[Any, ...], listeners: Iterable[Listener]) -> None:
        remaining = iter(listeners)
        self._current.append((event, args, remaining))
        try:
            for callback, hook in remaining:  # noqa: B007  the error names the callback
                hook(*args)
        except BaseException as error:
            add_note(error, f"raised by callback {callback.name!r} in {event.value}")
            raise
        finally:
            self._current.pop()

    def fire_to_all(self, event: Event, *args: Any) -> list[BaseException]:
        """As ``fire``, but call every hook even if others raise; return the errors."""
        errors: list[BaseException] = []
        for listener in self._table[event]:
            try:
                self._call(event, args, [listener])
            except BaseException as error:  # noqa: BLE001  returned to the caller
                errors.append(error)
        if self._flush_saves is not None:
            try:
                self._flush_saves()
            except BaseException as error:  # noqa: BLE001  as above
                errors.append(error)
        return errors

    def pending_event(self) -> dict[str, Any] | None:
        """The event that is being fired, and which of its listeners are still to be called.

        A callback may save the handler inside a hook. A resume from that file calls the remaining
        hooks first (``replay_event``).

        Raises:
            ConfigurationError: a hook of an evaluation saves that itself runs in a hook, whose rest
                no resume could repeat.
        """
        if not self._current or self._current[0][0] not in _NOT_REPEATED_BY_RESUME:
            return None
        return describe_pending_event(self._current, self.listeners(self._current[0][0]))

    def replay_event(self, pending_event: Mapping[str, Any], epoch_logs: Logs) -> None:
        """Call the hooks that ``pending_event`` of a checkpoint says are still to be called.

        ``epoch_logs`` is the live view of the epoch's values, which listeners log more of.
        """
        event = Event(pending_event["event"])
        args = [Logs(arg) if isinstance(arg, dict) else arg for arg in pending_event["args"]]
        if event is Event.EPOCH_END:
            args = [epoch_logs if isinstance(arg, Logs) else arg for arg in args]
        # what was shared before is the same on all ranks, and is shared once more
        waiting = waiting_ids(self.listeners(event), pending_event)
        waiting |= set(map(id, self._sharing))
        self._call(event, tuple(args), [x for x in self._table[event] if id(x[0]) in waiting])


def _sharing(order: int, share: Callable[[], None]) -> Callback:
    place: Any = Callback()
    place.order, place.on_epoch_end = order, lambda *_: share()
    return place  # type: ignore[no-any-return]


def _overrides(callback: Callback, event: Event) -> bool:
    """Whether the class or the instance overrides the empty hook of ``Callback``."""
    hook = getattr(callback, event.value)
    return getattr(hook, "__func__", hook) is not getattr(Callback, event.value)
