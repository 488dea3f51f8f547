"""The arguments of a constructor, read from attributes."""

import dataclasses
import datetime
import enum
import inspect
from pathlib import Path

import pytest

import fitkit
from fitkit.core.constructor_arguments import constructor_arguments


class Owner:
    def __init__(self, value, **options):
        self.value = value
        self.unrelated = 1


class Mode(enum.Enum):
    HOT = "hot"


@dataclasses.dataclass
class Rule:
    keep: int = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (0.5, 0.5),
        ("text", "text"),
        ([1, ("a", None)], [1, ("a", None)]),
        ({"a": {1: True}}, {"a": {1: True}}),
        (Path("runs/{epoch}.pth"), "runs/{epoch}.pth"),
        (datetime.timedelta(hours=1), "1:00:00"),
        (Mode.HOT, "HOT"),
        (Rule(3), {"keep": 3}),
    ],
)
def test_plain_values(value, plain):
    assert constructor_arguments(Owner(value)) == {"value": plain}


def contains_itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        print,
        object(),
        [print],
        {"a": object()},
        {1, 2},
        Rule,
        list(range(101)),
        "/absolute/{epoch}.pth",
        Path("/absolute"),
        contains_itself(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_left_out(value):
    assert constructor_arguments(Owner(value)) == {}


def test_arguments_with_an_underscore_of_parents_and_without():
    class Child(Owner):
        def __init__(self, patience, value):
            super().__init__(value)
            self._patience = patience

    assert constructor_arguments(Child(3, 4)) == {"patience": 3, "value": 4}
    assert constructor_arguments(Child(3, 4), without={"value"}) == {"patience": 3}
    assert constructor_arguments(object.__new__(Child)) == {}


@pytest.mark.parametrize("name", ["token", "api_key", "password", "client_secret", "tracking_uri"])
def test_credentials_are_left_out(name):
    namespace = {}
    exec(f"def __init__(self, {name}): self.{name} = {name}", namespace)
    cls = type("Client", (), {"__init__": namespace["__init__"]})
    assert constructor_arguments(cls("s3cret")) == {}


@pytest.mark.parametrize(
    "callback",
    [
        fitkit.EarlyStopping("loss"),
        fitkit.ReduceLROnPlateau("loss"),
        fitkit.AutoSaver(1, "run"),
        fitkit.ModelCheckpoint("a.pth", "loss", max_to_keep=1),
        fitkit.CSVLogger("a.csv"),
        fitkit.JSONLinesLogger("a.jsonl"),
        fitkit.Timer(3.0),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_built_in_callbacks_tell_their_arguments(callback):
    expected = set(inspect.signature(type(callback).__init__).parameters) - {"self", "name"}
    # the name of a log file and the mode of a saver are in their identities
    assert expected - set(callback.config()) <= {"filename", "mode"}
