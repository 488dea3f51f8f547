import pytest

from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.core.event import Event
from fitkit.core.logs import Logs


class Counter(Callback):
    state_fields = ("count",)

    def __init__(self, identity="", order=0, heard=None, fails=None):
        self.count = 0
        self.order = order
        self._identity = identity
        self._heard = heard
        self._fails = fails

    def identity(self):
        return self._identity

    def on_epoch_end(self, epoch, logs):
        self.count += 1
        if self._heard is not None:
            self._heard.append(self._identity)
        if self._fails is not None:
            raise self._fails


def states_of(callbacks):
    return [callback.count for callback in callbacks]


# ---- membership


def test_callbacks_run_by_order_then_as_added():
    heard = []
    callbacks = CallbackList(
        Counter(identity, order, heard) for identity, order in [("c", 100), ("a", 0), ("b", 0)]
    )
    callbacks.add(Counter("first", -1, heard))
    callbacks.fire(Event.EPOCH_END, 0, {})
    assert heard == ["first", "a", "b", "c"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Counter, r"received the class Counter: write Counter\(\.\.\.\)"),
        (print, "received builtin_function_or_method: subclass fitkit.Callback"),
        (None, "received NoneType"),
    ],
)
def test_what_is_no_callback_is_refused(wrong, message):
    callbacks = CallbackList()
    with pytest.raises(ConfigurationError, match=message):
        callbacks.add(wrong)
    assert len(callbacks) == 0


def test_adding_twice_is_refused_but_equal_callbacks_are_two():
    class Equal(Counter):
        def __eq__(self, other):
            return True

        __hash__ = None

    one = Equal()
    callbacks = CallbackList([one, Equal()])
    with pytest.raises(ConfigurationError, match="'Equal' was already added: add it once"):
        callbacks.add(one)
    assert len(callbacks) == 2


def test_removing():
    one, two = Counter(), Counter()
    callbacks = CallbackList([one])
    with pytest.raises(ConfigurationError, match="'Counter' is not attached; attached are 'Counte"):
        callbacks.remove(two)
    callbacks.remove(one)
    callbacks.fire(Event.EPOCH_END, 0, {})
    assert one.count == 0
    assert one not in callbacks
    with pytest.raises(ConfigurationError, match="attached are none"):
        callbacks.remove("Counter")


def test_iterating_is_safe_while_the_list_changes():
    callbacks = CallbackList([Counter(), Counter()])
    for callback in callbacks:
        callbacks.remove(callback)
    assert len(callbacks) == 0


# ---- events


def test_listens_only_to_what_is_overridden():
    callbacks = CallbackList([Counter()])
    assert [event for event in Event if callbacks.listens(event)] == [Event.EPOCH_END]


def test_a_hook_set_on_the_instance_is_heard():
    callback, heard = Callback(), []
    callback.on_train_begin = heard.append
    callbacks = CallbackList([callback])
    callbacks.fire(Event.TRAIN_BEGIN, "logs")
    assert heard == ["logs"]


def test_a_hook_set_after_adding_is_heard_from_the_next_fit():
    callback, heard = Callback(), []
    callbacks = CallbackList([callback])
    callback.on_train_begin = heard.append
    callbacks.bind(None, {}, None)
    callbacks.fire(Event.TRAIN_BEGIN, "logs")
    assert heard == ["logs"]


def test_bind_introduces_the_handler_and_the_call():
    callback, handler, params = Callback(), object(), {"epochs": 1}
    CallbackList([callback]).bind(handler, params, None)
    assert callback.handler is handler
    assert callback.params is params


def test_after_event_runs_once_after_all_have_heard():
    heard = []
    callbacks = CallbackList([Counter("a", 0, heard), Counter("b", 0, heard)])
    callbacks.bind(None, {}, lambda: heard.append("after"))
    callbacks.fire(Event.EPOCH_END, 0, {})
    callbacks.fire(Event.EPOCH_BEGIN, 0, {})  # nobody listens, so nobody can have asked
    assert heard == ["a", "b", "after"]


def test_an_error_names_callback_and_event_and_stops_the_event():
    heard, error = [], KeyboardInterrupt()
    callbacks = CallbackList([Counter("a", 0, heard, error), Counter("b", 0, heard)])
    callbacks.bind(None, {}, lambda: heard.append("after"))
    with pytest.raises(KeyboardInterrupt) as caught:
        callbacks.fire(Event.EPOCH_END, 0, {})
    assert caught.value is error
    assert error.__notes__ == ["raised by callback 'Counter' in on_epoch_end"]
    assert heard == ["a"]


def test_fire_to_all_reaches_all_and_gives_every_error():
    heard, first, second = [], ValueError("one"), SystemExit(2)
    callbacks = CallbackList(
        [Counter("a", 0, heard, first), Counter("b", 0, heard), Counter("c", 0, heard, second)]
    )
    assert callbacks.fire_to_all(Event.EPOCH_END, 0, {}) == [first, second]
    assert heard == ["a", "b", "c"]
    assert first.__notes__ == ["raised by callback 'Counter' in on_epoch_end"]


def test_fire_to_all_gives_the_error_of_what_follows_the_event():
    error = OSError("disk full")

    def fail():
        raise error

    callbacks = CallbackList([Counter()])
    callbacks.bind(None, {}, fail)
    assert callbacks.fire_to_all(Event.EPOCH_END, 0, {}) == [error]


class Asks(Callback):
    """Fires another event in its hook, as an evaluation does, and notes what is pending."""

    def __init__(self, name, heard, inner=()):
        self.name, self._heard, self._inner, self.callbacks = name, heard, inner, None

    def on_epoch_end(self, epoch, logs):
        self._heard.append(self.name)
        for event in self._inner:
            self.callbacks.fire(event, {})
        self.pending = self.callbacks.pending_event()


class Hears(Callback):
    def __init__(self, heard):
        self._heard = heard

    def on_test_end(self, logs):
        self._heard.append("inner")


def list_of(*callbacks):
    attached = CallbackList(callbacks)
    for callback in callbacks:
        callback.callbacks = attached
    attached.begin()
    return attached


def waiting(pending):
    return [entry["waits"] for entry in pending["listeners"]]


def test_saves_wait_for_the_end_of_the_outermost_event():
    heard = []
    callbacks = list_of(Asks("a", heard, [Event.TEST_END]), Hears(heard), Asks("b", heard))
    callbacks.bind(None, {}, lambda: heard.append("saved"))
    callbacks.fire(Event.EPOCH_END, 0, {})
    assert heard == ["a", "inner", "b", "saved"]
    callbacks.fire_to_all(Event.EPOCH_END, 0, {})
    assert heard[4:] == ["a", "inner", "b", "saved"]
    callbacks.fire(Event.TEST_END, {})
    assert heard[8:] == ["inner", "saved"]


def test_a_nested_event_is_known_as_one():
    nested = []

    class Looks(Callback):
        def on_test_end(self, logs):
            nested.append(self.callbacks.is_nested)

    callbacks = list_of(Asks("a", [], [Event.TEST_END]), Looks())
    callbacks.fire(Event.EPOCH_END, 0, {})
    callbacks.fire(Event.TEST_END, {})
    assert nested == [True, False]


def test_the_pending_event_is_that_of_the_hook_and_says_who_has_yet_to_hear_it():
    callbacks = list_of(one := Asks("a", []), two := Asks("a", []), three := Asks("b", []))
    assert callbacks.pending_event() is None
    callbacks.fire(Event.EPOCH_END, 3, Logs({"loss": 1}))
    assert (one.pending["event"], one.pending["args"]) == ("on_epoch_end", [3, {"loss": 1}])
    assert waiting(one.pending) == [False, True, True]
    assert waiting(two.pending) == [False, False, True]
    assert three.pending is None
    assert callbacks.pending_event() is None


@pytest.mark.parametrize("only_in_evaluation", [False, True])
def test_a_save_inside_an_evaluation_inside_a_hook_is_refused(only_in_evaluation):
    class Saves(Callback):
        def on_test_end(self, logs):
            callbacks.pending_event()

    outer = Asks("a", [], [Event.TEST_END])
    callbacks = list_of(outer) if only_in_evaluation else list_of(outer, Saves())
    outer.callbacks = callbacks.extended([Saves()]) if only_in_evaluation else callbacks
    with pytest.raises(ConfigurationError, match=r"in on_test_end .* save in on_epoch_end"):
        callbacks.fire(Event.EPOCH_END, 0, {})
    assert callbacks.pending_event() is None


def test_a_copy_that_is_saved_when_a_save_is_announced_is_not_refused():
    told = Asks("a", [], [Event.CHECKPOINT_SAVED])
    list_of(told, Asks("b", [])).fire(Event.EPOCH_END, 0, {})
    assert waiting(told.pending) == [False, True]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("names", ["aaa", "aab", "abc"])
def test_a_replay_reaches_those_that_had_not_heard(place, names):
    callbacks = list_of(*(Asks(name, []) for name in names))
    callbacks.fire(Event.EPOCH_END, 3, Logs())
    pending = callbacks[place].pending
    resumed = [Asks(name, []) for name in names]
    attached, logs = list_of(*resumed), Logs({"late": 1.0})
    if pending is not None:
        attached.replay_event(pending, logs)
    assert [len(callback._heard) for callback in resumed] == [0] * (place + 1) + [1] * (2 - place)
    if place == 0:  # a save during a replay says again who waits
        assert waiting(resumed[1].pending) == [False, False, True]


def test_a_replayed_end_of_an_epoch_shows_what_others_log_in_it():
    seen, logged = [], {"loss": 1.0}

    class Late(Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(dict(logs))
            logged["late"] = 2.0

    pending = {"event": "on_epoch_end", "args": [3, {"loss": 1.0}]}
    pending["listeners"] = [{"name": "Late", "identity": "", "config": {}, "waits": True}] * 2
    list_of(Late(), Late()).replay_event(pending, Logs(logged))
    assert seen == [{"loss": 1.0}, {"loss": 1.0, "late": 2.0}]


def test_a_file_of_an_earlier_version_names_those_that_wait():
    heard = []
    attached = list_of(*(Asks(name, heard) for name in ("a", "b", "a")))
    pending = {"event": "on_epoch_end", "args": [3, {}], "waiting": [["b", ""], ["a", ""]]}
    attached.replay_event(pending, Logs())
    assert heard == ["b", "a"]
    assert [len(callback._heard) for callback in attached] == [2, 2, 2]
    assert not hasattr(attached[0], "pending"), "the first had heard it"


# ---- state


def run_of(*callbacks):
    attached = CallbackList(callbacks)
    attached.begin()
    return attached


def saved(*counts_and_identities):
    callbacks = []
    for count, identity in counts_and_identities:
        callbacks.append(Counter(identity))
        callbacks[-1].count = count
    return CallbackList(callbacks).state_dict()


def test_states_of_callbacks_of_one_name_have_keys_of_their_own():
    states = saved((1, "a"), (2, "b"), (3, ""))
    assert list(states) == ["Counter", "Counter_2", "Counter_3"]
    entry = {**states["Counter_2"], "config": None}
    assert entry == {"name": "Counter", "identity": "b", "config": None, "state": {"count": 2}}


def test_a_name_that_looks_like_a_numbered_key_takes_no_other_state():
    odd = Counter()
    odd.name = "Counter_2"
    odd.count = 9
    plain = [Counter(), Counter()]
    states = CallbackList([odd, *plain]).state_dict()
    assert len(states) == 3
    assert states["Counter_2"]["state"] == {"count": 9}


def test_callbacks_without_state_are_not_in_it():
    assert CallbackList([Callback()]).state_dict() == {}


def test_a_state_that_is_no_dict_is_an_error():
    class Wrong(Callback):
        def state_dict(self):
            return [1]

    with pytest.raises(CheckpointError, match="'Wrong' must return a dict, received list"):
        CallbackList([Wrong()]).state_dict()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("attached_first", [True, False])
def test_states_follow_identity_whatever_the_order(order, attached_first):
    states = saved((1, "a"), (2, "b"))
    callbacks = [Counter(identity) for identity in order]
    attached = CallbackList(callbacks if attached_first else ())
    attached.load_state_dict(states)
    if not attached_first:
        for callback in callbacks:
            attached.add(callback)
    attached.begin()
    assert {c.identity(): c.count for c in callbacks} == {"a": 1, "b": 2}
    assert attached.unclaimed == {}


def test_callbacks_alike_in_all_get_states_in_order():
    callbacks = [Counter(), Counter(), Counter()]
    attached = CallbackList(callbacks)
    attached.load_state_dict(saved((1, ""), (2, ""), (3, "")))
    attached.begin()
    assert states_of(callbacks) == [1, 2, 3]


def test_a_changed_meaning_begins_anew_and_both_are_named():
    exact, changed = Counter("b"), Counter("new")
    attached = CallbackList([changed, exact])
    attached.load_state_dict(states := saved((1, "a"), (2, "b")))
    with pytest.warns(UserWarning, match=r"'Counter \(new\)' instead of 'Counter \(a\)'") as told:
        attached.begin()
    assert len(told) == 1, "it is not told again that a state is not attached"
    assert (changed.count, exact.count) == (0, 2)
    assert attached.state_dict()["Counter_3"] == states["Counter"]


def test_a_changed_configuration_keeps_its_state():
    exact, changed = Counter("a"), Counter("a", order=1)
    attached = CallbackList([changed, exact])
    attached.load_state_dict(saved((1, "a"), (2, "a")))
    attached.begin()
    # the unchanged one takes the first, then only one is left, so nothing is ambiguous
    assert (changed.count, exact.count) == (2, 1)
    assert attached.config_changes() == ["Counter (a) order: 0 -> 1"]


def test_several_changed_configurations_follow_the_order_and_that_is_told():
    one, two = Counter("a", order=1), Counter("a", order=2)
    attached = CallbackList([one, two])
    attached.load_state_dict(saved((1, "a"), (2, "a")))
    with pytest.warns(UserWarning, match="handed out by their order: 'Counter \\(a\\)'"):
        attached.begin()
    assert states_of([one, two]) == [1, 2]


def test_an_exact_match_that_comes_later_is_not_robbed():
    attached = CallbackList()
    attached.load_state_dict(saved((1, "a")))
    late_but_right = Counter("a")
    attached.add(Counter("other"))
    attached.add(late_but_right)
    attached.begin()
    assert late_but_right.count == 1


def test_callbacks_named_after_they_were_added_find_their_own_state():
    states = saved((1, "a"), (2, "b"))
    attached = CallbackList([Counter(), Counter()])
    attached.load_state_dict(states)
    for callback, identity in zip(attached, "ba", strict=True):
        callback._identity = identity
    attached.begin()
    assert states_of(attached) == [2, 1]


def test_states_without_owner_are_named_kept_and_saved_again():
    attached = CallbackList([Callback()])
    states = saved((1, "a"))
    attached.load_state_dict(states)
    with pytest.warns(UserWarning, match="not attached: 'Counter'"):
        attached.begin()
    assert attached.config_changes() == ["Counter (a): removed"]
    assert attached.state_dict() == states
    late = Counter("a")
    attached.add(late)
    assert late.count == 1
    attached.begin()  # no warning, and no reset of what was restored
    assert late.count == 1


def test_loading_does_not_change_what_it_was_given():
    states = saved((1, "a"), (2, "b"))
    before = {key: dict(entry) for key, entry in states.items()}
    run_of(Counter("a")).load_state_dict(states)
    assert states == before


def test_begin_resets_what_was_not_restored():
    restored, fresh = Counter("a"), Counter("b")
    attached = run_of(restored, fresh)
    restored.count = fresh.count = 5
    attached.load_state_dict(saved((3, "a")))
    attached.begin()
    assert (restored.count, fresh.count) == (3, 0)
    attached.begin()
    assert (restored.count, fresh.count) == (0, 0)


def test_a_callback_that_spans_fits_goes_on_in_its_own_run_only():
    class Whole(Counter):
        spans_fits = True

    callback = Whole()
    attached = run_of(callback)
    callback.count = 4
    attached.begin()
    assert callback.count == 4
    attached.remove(callback)
    run_of(callback)
    assert callback.count == 0


def test_a_state_that_does_not_fit_names_the_callback():
    states = saved((1, "a"))
    states["Counter"]["state"] = {"other": 1}
    attached = CallbackList([Counter("a")])
    with pytest.raises(CheckpointError, match="missing 'count', unknown 'other'") as caught:
        attached.load_state_dict(states)
    assert "state of callback 'Counter'" in caught.value.__notes__[0]


def test_a_callback_whose_state_does_not_fit_is_not_added():
    states = saved((1, "a"))
    states["Counter"]["state"] = {"other": 1}
    attached = CallbackList()
    attached.load_state_dict(states)
    with pytest.raises(CheckpointError):
        attached.add(Counter("a"))
    assert len(attached) == 0
    assert list(attached.unclaimed) == ["Counter"]


def test_a_removed_callback_forgets_that_it_was_restored():
    callback = Counter("a")
    attached = CallbackList([callback])
    attached.load_state_dict(saved((3, "a")))
    attached.remove(callback)
    attached.add(callback)
    attached.begin()
    assert callback.count == 0


def test_what_departed_callbacks_knew_stays_in_the_state_until_the_next_fit():
    staying, leaving = Counter("stays"), Counter("leaves")
    attached = run_of(staying, leaving)
    staying.count, leaving.count = 1, 2
    attached.detach([leaving])
    entries = attached.state_dict().values()
    assert [(e["identity"], e["state"]["count"]) for e in entries] == [("stays", 1), ("leaves", 2)]
    staying.count = 7  # of the same name: its own state must not be kept as it was
    assert sorted(e["state"]["count"] for e in attached.state_dict().values()) == [2, 7]
    attached.begin()
    assert len(attached.state_dict()) == 1


def test_departing_twice_loses_nothing():
    one, two = Counter("one"), Counter("two")
    attached = run_of(one, two)
    attached.detach([one])
    attached.detach([two])
    assert {e["identity"] for e in attached.state_dict().values()} == {"one", "two"}


def test_departing_does_not_double_what_nobody_claimed():
    attached = CallbackList([Counter("a"), Counter("b")])
    attached.load_state_dict(saved((1, "a"), (2, "b"), (3, "c")))
    with pytest.warns(UserWarning, match="not attached"):
        attached.begin()
    attached.detach(list(attached))
    assert sorted(e["state"]["count"] for e in attached.state_dict().values()) == [1, 2, 3]


def test_what_can_never_be_saved_is_told_when_training_begins():
    def check(state, name):
        checked.append((state, name))

    checked = []
    attached = CallbackList([Counter("a"), Callback()])
    attached.begin(check)
    assert checked == [({"count": 0}, "callback 'Counter' cannot be saved: state")]


def test_differences_are_those_of_the_last_resume():
    attached = run_of(kept := Counter("a", order=1), added := Counter("b"))
    assert attached.config_changes() == []
    states = saved((1, "a"), (2, "gone"))
    attached.load_state_dict(states)
    with pytest.warns(UserWarning, match="begin anew"):
        attached.begin()
    assert attached.config_changes() == [
        "Counter (a) order: 0 -> 1",
        "Counter (gone): removed",
        "Counter (b): added",
    ]
    assert (kept.count, added.count) == (1, 0)
    attached.begin()
    assert attached.config_changes() == []


def test_a_state_is_decoded_when_its_callback_is_there():
    decoded = []

    def decode(state):
        decoded.append(state)
        return {"count": state["count"] + 10}

    attached = CallbackList([first := Counter("a")])
    attached.load_state_dict(saved((1, "a"), (2, "b")), decode=decode)
    assert (first.count, decoded) == (11, [{"count": 1}])
    attached.add(second := Counter("b"))
    assert second.count == 12


def test_callbacks_are_detached_also_if_a_state_cannot_be_read():
    class Fails(Counter):
        def state_dict(self):
            raise OSError("no state")

    attached = CallbackList([one := Fails(), two := Counter()])
    with pytest.raises(OSError, match="no state"):
        attached.detach([one, two])
    assert len(attached) == 0
