"""Which event is pending while the handler is saved; ``test_callback_list.py`` fires them."""

from __future__ import annotations

from fitkit import Callback, Event, Logs
from fitkit.core.pending_event import describe_pending_event, waiting_ids


class A(Callback):
    pass


class B(Callback):
    pass


def fired(event, args, waiting):
    return (event, args, iter([(callback, print) for callback in waiting]))


def test_listeners_are_described_with_who_waits():
    first, second = A(), B()
    logs = Logs({"loss": 1})
    pending = describe_pending_event([fired(Event.EPOCH_END, (2, logs), [second])], [first, second])
    assert (pending["event"], pending["args"]) == ("on_epoch_end", [2, {"loss": 1.0}])
    assert [(one["name"], one["waits"]) for one in pending["listeners"]] == [
        ("A", False),
        ("B", True),
    ]
    assert waiting_ids([first, second], pending) == {id(second)}
    assert describe_pending_event([fired(Event.EPOCH_END, (2, logs), [])], [first, second]) is None


def test_logs_that_are_not_reduced_are_those_of_this_rank():
    first = A()
    logs = Logs(own={"loss": 3})
    pending = describe_pending_event([fired(Event.TRAIN_BATCH_END, (2, logs), [first])], [first])
    assert pending["args"] == [2, {"loss": 3.0}]


def test_what_waits_in_a_file_of_fitkit_0_2_are_the_last_ones():
    first, second = A(), A()
    assert waiting_ids([first, second], {"waiting": [["A", ""]]}) == {id(second)}
