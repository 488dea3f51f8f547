import pytest

from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event


def test_functions_hear_their_events(drive):
    heard = []
    callback = LambdaCallback(
        on_train_begin=lambda logs: heard.append("begin"),
        on_epoch_end=lambda epoch, logs: heard.append((epoch, logs["val_loss"])),
    )
    drive(callback).fit([0.5, 0.25])
    assert heard == ["begin", (0, 0.5), (1, 0.25)]


def test_every_event_has_a_hook():
    hooks = {event.value: print for event in Event}
    callback = LambdaCallback(**hooks)
    assert all(getattr(callback, name) is print for name in hooks)


def test_events_without_a_function_are_not_listened_to(drive):
    driver = drive(LambdaCallback(on_epoch_end=lambda epoch, logs: None))
    assert [event for event in Event if driver.callbacks.listens(event)] == [Event.EPOCH_END]


def test_an_unknown_name_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigurationError, match="Did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)


def test_a_hook_must_be_a_function():
    with pytest.raises(ConfigurationError, match="must be a function, received 3"):
        LambdaCallback(on_epoch_end=3)
