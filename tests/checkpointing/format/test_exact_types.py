"""Values of callbacks that come back with their types, or are refused."""

import collections
import datetime
import enum
import types
import typing
import zoneinfo

import numpy as np
import pytest
import torch
from torch import nn

from fitkit import CheckpointError
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.format.tags import TAG
from fitkit.checkpointing.storage import atomic_write, safe_load


class Mode(enum.Enum):
    WARM = "warm"
    HOT = object()  # the value itself could not be saved


class Level(enum.IntEnum):
    LOW = 1


class Flags(enum.Flag):
    A = 1
    B = 2


class Best(typing.NamedTuple):
    epoch: int
    loss: typing.Any = None

    class Inner(enum.Enum):
        ONE = 1


Pair = collections.namedtuple("Pair", "one two")
Unfindable = collections.namedtuple("AnotherName", "x")


class Word(str):
    pass


class Table(dict):
    pass


class WithAttributes(collections.namedtuple("WithAttributes", "x")):
    pass


class Marked(torch.Tensor):
    pass


KEPT = [
    Mode.WARM,
    Mode.HOT,
    Level.LOW,
    Flags.A,
    Flags.A | Flags.B,
    Flags(0),
    Best.Inner.ONE,
    Best(1, [np.float32(2)]),
    Pair(Mode.HOT, {"a": Pair(1, 2)}),
    collections.defaultdict(list, {"a": [1]}),
    collections.defaultdict(None, a=Best(1)),
    collections.Counter({"a": np.int64(2)}),
    collections.OrderedDict(b=np.float16(1), a=2),
    collections.deque([Level.LOW], maxlen=2),
    *(np.dtype(name).type(1) for name in ("bool", "int8", "uint64", "float16", "float32")),
    np.float64("nan"),
    np.complex64(1 + 2j),
    np.str_("a"),
    np.bytes_(b""),
    np.datetime64("2020-01-02T03", "h"),
    np.timedelta64(3, "D"),
    datetime.date(2020, 1, 2),
    datetime.time(1, 2, 3),
    datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    {1, 2},
    frozenset([Mode.WARM]),
    np.arange(3),
]


@pytest.mark.parametrize("value", KEPT, ids=lambda value: type(value).__name__)
def test_it_comes_back_as_it_was(value, tmp_path):
    encoded = encode({"mine": [value]}, keep_types=True)
    atomic_write.write(encoded, tmp_path / "a.pth")
    back = decode(safe_load.read(tmp_path / "a.pth"))["mine"][0]
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    if isinstance(value, collections.defaultdict):
        assert back.default_factory is value.default_factory
    again = decode(encode(encoded, keep_types=True))["mine"][0]
    assert repr(again) == repr(value), "the state of a callback that is not attached is saved again"


def local_member():
    class Local(enum.Enum):
        ONE = 1

    return Local.ONE


def with_attribute():
    value = WithAttributes(1)
    value.note = 2
    return value


REFUSED = [
    (Word("a"), "Word"),
    (Table(a=1), "Table"),
    (types.MappingProxyType({}), "mappingproxy"),
    (collections.defaultdict(lambda: 0), "default factory"),
    (collections.defaultdict(np.float32), "default factory"),
    (Unfindable(1), "AnotherName, which a resume could not find"),
    (local_member(), "which a resume could not find"),
    (with_attribute(), "attributes besides its fields"),
    (np.longdouble(1), "torch lacks"),
    (datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), "time zone"),
    (datetime.datetime(2020, 1, 1, fold=1), "fold"),
    (torch.ones(2).as_subclass(Marked), "Marked"),
    (torch.max(torch.ones(2, 2), 0), "max"),
    (np.memmap, "type"),
    ({Mode.WARM: 1}, "key of type Mode"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=lambda value: type(value).__name__)
def test_it_is_refused_with_its_place(value, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        encode({"field": [value]}, keep_types=True)
    assert str(caught.value).startswith("state['field'][0] ")


def test_parameters_become_tensors():
    assert type(encode(nn.Parameter(torch.ones(1)), keep_types=True)) is torch.Tensor


@pytest.mark.parametrize(
    "saved",
    [
        {TAG: "enum", "class": "no.such:Mode", "name": "A"},
        {TAG: "enum", "class": f"{__name__}:Mode", "name": "GONE"},
        {TAG: "enum", "class": f"{__name__}:Mode", "value": "warm"},
        {TAG: "enum", "class": f"{__name__}:Pair", "name": "one"},
        {TAG: "enum", "class": "builtins:print", "name": "A"},
        {TAG: "enum"},
        {TAG: "namedtuple", "class": f"{__name__}:Pair", "fields": {"one": 1}},
        {TAG: "namedtuple", "class": f"{__name__}:Pair", "fields": {"one": 1, "three": 2}},
        {TAG: "namedtuple", "class": "builtins:tuple", "fields": {"one": 1}},
        {TAG: "namedtuple", "class": f"{__name__}:Table", "fields": {}},
        {TAG: "defaultdict", "factory": "eval", "items": {}},
        {TAG: "defaultdict", "factory": "list", "items": 3},
        {TAG: "scalar", "data": "x", "dtype": "float32"},
        {TAG: "scalar", "data": 1, "dtype": "O"},
        {TAG: "date", "iso": "yesterday"},
    ],
    ids=str,
)
def test_altered_content_is_an_error_of_ours(saved):
    with pytest.raises(CheckpointError):
        decode([saved])
