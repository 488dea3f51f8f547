import copy

import pytest
import torch

from fitkit.core.callback import BuiltinCallback, Callback
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.core.event import Event


class Best(Callback):
    state_fields = ("best", "seen")

    def __init__(self):
        self.best = None
        self.seen = []


def test_the_hooks_of_the_class_are_the_events():
    hooks = {name for name in vars(Callback) if name.startswith("on_")}
    assert hooks == {event.value for event in Event}


def test_hooks_do_nothing_and_need_no_init():
    class Silent(Callback):
        def __init__(self):
            pass  # no super().__init__()

    callback = Silent()
    for event in Event:
        args = (0, {}) if "batch" in event.value or "epoch" in event.value else ({},)
        args = (0, {}) if "step" in event.value else args
        args = (0, []) if event is Event.PREDICT_OUTPUTS else args
        args = ("path", {}) if event is Event.CHECKPOINT_SAVED else args
        assert getattr(callback, event.value)(*args) is None


def test_name_is_the_class_name_unless_set():
    class Named(Callback):
        name = "other"

    class Child(Named):
        pass

    assert Best().name == "Best"
    assert Named().name == "other"
    assert Child().name == "Child"


def test_a_string_as_state_fields_is_an_error():
    with pytest.raises(ConfigurationError, match=r"received the string 'best': write \('best',\)"):
        type("Wrong", (Callback,), {"state_fields": "best"})


def test_a_subclass_cannot_lose_its_parents_fields():
    class Child(Best):
        state_fields = ("extra",)

    class Grandchild(Child):
        state_fields = ("best", "last")

    class Silent(Best):
        pass

    assert Child.state_fields == ("best", "seen", "extra")
    assert Grandchild.state_fields == ("best", "seen", "extra", "last")
    assert Silent.state_fields == ("best", "seen")
    assert Best.state_fields == ("best", "seen")


def test_fields_of_a_mixin_that_is_no_callback_count():
    class Mixin:
        state_fields = ("mixed",)

    class Child(Mixin, Best):
        pass

    assert set(Child.state_fields) == {"mixed", "best", "seen"}


def test_state_round_trip():
    callback, other = Best(), Best()
    callback.best, callback.seen = 0.5, [1, 2]
    other.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert (other.best, other.seen) == (0.5, [1, 2])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "missing 'best', 'seen', unknown none"),
        ({"best": 1}, "missing 'seen', unknown none"),
        ({"best": 1, "seen": [], "old": 2}, "missing none, unknown 'old'"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(state, message):
    callback = Best()
    callback.best = 3
    with pytest.raises(CheckpointError, match=message):
        callback.load_state_dict(state)
    assert callback.best == 3
    assert callback.seen == []


def test_loading_shares_nothing_with_the_state():
    state = {"best": torch.zeros(1), "seen": [1]}
    callback = Best()
    callback.load_state_dict(state)
    callback.seen.append(2)
    callback.best += 1
    assert state == {"best": torch.zeros(1), "seen": [1]}


def test_reset_gives_back_what_the_constructor_made_each_time():
    callback = Best()
    callback.remember_initial_state()
    for _ in range(2):
        callback.best = 1
        callback.seen.append(1)
        callback.remember_initial_state()  # a later call must not take the progress for it
        callback.reset()
        assert callback.best is None
        assert callback.seen == []


def test_reset_before_anything_was_remembered_changes_nothing():
    callback = Best()
    callback.best = 1
    callback.reset()
    assert callback.best == 1


def test_a_field_without_attribute_is_named():
    class Forgot(Callback):
        state_fields = ("wait",)

    with pytest.raises(ConfigurationError, match=r"'Forgot' names 'wait' in state_fields"):
        Forgot().remember_initial_state()


def test_model_and_log_go_through_the_handler():
    class Handler:
        module = torch.nn.Linear(1, 1)

        def log(self, name, value):
            self.logged = (name, value)

    callback = Callback()
    callback.handler = Handler()
    callback.log("x", 1.0)
    assert callback.model is Handler.module
    assert callback.handler.logged == ("x", 1.0)


def test_params_are_read_only_before_training():
    with pytest.raises(TypeError):
        Callback().params["epochs"] = 1


class Own(Callback):
    """Keeps its state in a dict of its own, with a tensor that training changes in place."""

    def __init__(self):
        self.kept = {"best": None, "sums": torch.zeros(2)}

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state_dict):
        self.kept = dict(state_dict)


def test_reset_of_a_state_dict_of_its_own():
    callback = Own()
    callback.remember_initial_state()
    for _ in range(2):
        callback.kept["best"] = 1
        callback.kept["sums"] += 1
        callback.reset()
        assert callback.kept["best"] is None
        assert callback.kept["sums"].tolist() == [0, 0]


def test_a_reset_of_its_own_is_called_instead():
    class Resets(Own):
        def reset(self):
            self.kept = "reset"

    callback = Resets()
    callback.remember_initial_state()
    callback.reset()
    assert callback.kept == "reset"


def test_fields_that_a_parent_writes_under_other_keys_are_reset():
    class Renames(Best):
        def state_dict(self):
            return {f"my_{name}": value for name, value in super().state_dict().items()}

        def load_state_dict(self, state_dict):
            super().load_state_dict({k.removeprefix("my_"): v for k, v in state_dict.items()})

    callback = Renames()
    callback.remember_initial_state()
    callback.best = 3
    callback.reset()
    assert callback.best is None


def test_what_cannot_be_copied_is_named():
    callback = Best()
    callback.seen = (number for number in ())
    with pytest.raises(CheckpointError, match="'Best': seen cannot be saved: it is a generator"):
        callback.remember_initial_state()


@pytest.mark.parametrize("wrong", ["", 3, ["a"]])
def test_a_name_is_a_string(wrong):
    with pytest.raises(ConfigurationError, match="name must be a non-empty string"):
        BuiltinCallback(name=wrong)
    assert BuiltinCallback(name="mine").name == "mine"
    assert BuiltinCallback().name == "BuiltinCallback"
