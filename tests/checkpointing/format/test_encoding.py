from __future__ import annotations

import datetime
import io
import math
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fitkit import CheckpointError
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.format.tags import TAG


def through_a_file(value):
    """What a checkpoint gives back, read without any allow-list."""
    buffer = io.BytesIO()
    torch.save(encode(value), buffer)
    buffer.seek(0)
    return decode(torch.load(buffer, weights_only=True))


def same(left, right) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    return left == right


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.timedeltas(),
    st.datetimes(timezones=st.sampled_from([None, datetime.timezone.utc])),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    st.sampled_from([torch.float16, torch.device("cpu"), torch.Size([2, 3]), Path("a/b.pth")]),
    st.sampled_from([np.arange(3), np.zeros((2, 0)), np.array(1.5), np.array([True, False])]),
    st.sampled_from([torch.arange(3), torch.tensor(2.5), torch.zeros(0, 2)]),
    st.frozensets(st.integers(), max_size=3),
)
KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.tuples(st.integers()))
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(OrderedDict, st.dictionaries(KEYS, inner, max_size=3)),
        st.builds(lambda items, more: deque(items, len(items) + more), st.lists(inner), st.just(1)),
        st.sets(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
        st.builds(Counter, st.lists(st.text(max_size=2), max_size=3)),
    ),
    max_leaves=12,
)


@settings(max_examples=250, database=None)
@given(value=NESTED)
def test_whatever_is_documented_comes_back_as_it_was(value):
    assert same(through_a_file(value), value)


@settings(max_examples=50, database=None)
@given(value=NESTED)
def test_what_is_plain_already_stays(value):
    """``save_single_file`` makes plain what ``get_state_dict`` has made plain."""
    assert same(decode(encode(encode(value))), value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).astype(dtype).reshape(2, 3)
        for dtype in [
            "bool",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "float16",
            "float32",
            "float64",
            "complex64",
            "complex128",
            ">f4",
            ">i8",
        ]
    ]
    + [np.arange(10)[::-2], np.asfortranarray(np.ones((2, 3))), np.float32([math.nan, -0.0])],
    ids=lambda array: str(array.dtype),
)
def test_arrays_come_back_with_their_type(array):
    back = through_a_file({"a": array})["a"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert array.flags.owndata or array.base is not None


def test_an_array_is_copied_not_shared():
    array = np.zeros(3)
    plain = encode(array)
    array[:] = 1
    assert not plain["data"].any()


class Colour(Enum):
    RED = "red"
    HALF = np.float64(0.5)


class Level(IntEnum):
    HIGH = 3


Pair = namedtuple("Pair", "left right")


class Word(str):
    __slots__ = ()


class Marked(torch.Tensor):
    pass


def test_relatives_of_plain_types_become_plain():
    value = {
        "float": np.float32(0.5),
        "long": np.longdouble(0.25),
        "long complex": np.clongdouble(1 + 2j),
        "int": np.int64(7),
        "bool": np.bool_(True),
        "text": np.str_("a"),
        "bytes": np.bytes_(b"b"),
        "date": np.datetime64("2020-01-02T03:04:05"),
        "enum": Colour.RED,
        "number": Colour.HALF,
        "level": Level.HIGH,
        "pair": Pair(1, np.int8(2)),
        "word": Word("w"),
        "default": defaultdict(list, a=[1]),
        "proxy": types.MappingProxyType({"a": 1}),
    }
    back = through_a_file(value)
    assert back == {
        "float": 0.5,
        "long": 0.25,
        "long complex": 1 + 2j,
        "int": 7,
        "bool": True,
        "text": "a",
        "bytes": b"b",
        "date": datetime.datetime(2020, 1, 2, 3, 4, 5),
        "enum": "red",
        "number": 0.5,
        "level": 3,
        "pair": (1, 2),
        "word": "w",
        "default": {"a": [1]},
        "proxy": {"a": 1},
    }
    for name, item in back.items():
        assert type(item).__module__ in ("builtins", "datetime"), name


def test_sets_within_sets():
    value = {"s": {frozenset({1, 2}), "x"}, "f": frozenset({frozenset({3})})}
    assert through_a_file(value) == value


def test_tensors_with_gradients_subclasses_and_attributes():
    tensor = torch.ones(2)
    tensor.note = test_sets_within_sets
    value = {
        "grad": torch.ones(2, requires_grad=True) * 2,
        "parameter": nn.Parameter(torch.ones(3)),
        "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
        "subclass": torch.ones(4).as_subclass(Marked),
        "attribute": tensor,
    }
    back = through_a_file(value)
    for name, item in back.items():
        assert type(item) is torch.Tensor, name
        assert not item.requires_grad
        assert torch.equal(item, torch.Tensor(value[name].detach()))
    assert tensor.note is test_sets_within_sets, "the argument was changed"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor(True),
        torch.eye(3).to_sparse(),
        torch.arange(12).reshape(3, 4).t(),
        torch.ones(2, dtype=torch.float8_e4m3fn),
    ],
    ids=["bf16", "complex", "bool", "sparse", "transposed", "fp8"],
)
def test_tensors_of_every_kind(tensor):
    back = through_a_file([tensor])[0]
    assert back.dtype == tensor.dtype
    assert back.layout == tensor.layout
    assert back.to_dense().tolist() == tensor.to_dense().tolist()


def test_shared_tensors_stay_shared():
    tensor = torch.ones(3)
    back = through_a_file({"a": tensor, "b": tensor})
    assert back["a"].data_ptr() == back["b"].data_ptr()


def test_the_versions_of_a_module_state_dict_are_kept():
    state = nn.BatchNorm1d(2).state_dict()
    assert through_a_file({"m": state})["m"]._metadata == state._metadata
    assert type(encode(state)) is OrderedDict


def test_what_an_ordered_dict_holds_comes_back():
    value = OrderedDict(a=np.arange(3), b=deque([1]))
    assert same(through_a_file(value), value)


def test_the_argument_is_not_changed():
    inner = deque([np.float32(1)])
    value = {"a": [inner], "b": OrderedDict(c=Path("x"))}
    encode(value)
    assert value["a"][0] is inner
    assert type(inner[0]) is np.float32
    assert value["b"]["c"] == Path("x")


@dataclass
class Settings:
    a: int = 1


class Thing:
    pass


@pytest.mark.parametrize(
    "leaf",
    [
        Thing(),
        Settings(),
        Thing,
        len,
        lambda: None,
        torch.Generator(),
        nn.Linear(1, 1),
        slice(3),
        bytearray(b"x"),
        datetime.date(2020, 1, 1),
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype=np.longdouble),
        np.ma.masked_array([1, 2], mask=[True, False]),
        np.datetime64("2020-01-01"),
        iter([]),
        io.BytesIO(),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_anything_else_is_named_by_its_path(leaf):
    with pytest.raises(CheckpointError) as caught:
        encode({"callbacks": {"Mine": [0, {"thing": leaf}]}})
    assert "state['callbacks']['Mine'][1]['thing']" in str(caught.value)
    assert "tensors and plain types" in str(caught.value)
    assert type(leaf).__qualname__ in str(caught.value) or isinstance(leaf, np.datetime64)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        (b"",),
        np.int64(1),
        Colour.RED,
        frozenset(),
        (1, np.int64(2)),
        (1, (Thing,)),
        torch.ones(1),
    ],
)
def test_keys_that_could_not_be_loaded_are_refused(key):
    with pytest.raises(CheckpointError, match=r"state\['a'\] has a key of type"):
        encode({"a": {key: 1}})


@pytest.mark.parametrize(
    "saved",
    [
        {TAG: "unknown"},
        {TAG: None},
        {TAG: ["list"]},
        {TAG: "deque"},
        {TAG: "deque", "items": 3, "maxlen": None},
        {TAG: "deque", "items": [], "maxlen": -1},
        {TAG: "frozenset", "items": [[]]},
        {TAG: "set", "items": [{}]},
        {TAG: "ndarray", "data": [1], "dtype": "int64"},
        {TAG: "ndarray", "data": torch.ones(1), "dtype": "O"},
        {TAG: "ndarray", "data": torch.ones(1), "dtype": "S1000000000000"},
        {TAG: "ndarray", "data": torch.ones(1), "dtype": "no such"},
        {TAG: "ndarray", "data": torch.ones(1), "dtype": 7},
        {TAG: "path", "path": 3},
        {TAG: "timedelta", "parts": [10**12]},
        {TAG: "timedelta", "parts": "abc"},
        {TAG: "datetime", "iso": "yesterday"},
        {TAG: "range", "parts": [1, 2, 0]},
        {TAG: "range", "parts": 3},
    ],
    ids=str,
)
def test_tags_that_mean_nothing_are_our_errors(saved):
    with pytest.raises(CheckpointError, match="the checkpoint holds"):
        decode({"a": [saved]})


def test_paths_of_other_flavours():
    assert through_a_file(PurePosixPath("a/../b")) == Path("a/../b")


# ---- depth --------------------------------------------------------------------------------------

WRAPS = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"a": value},
    "ordered": lambda value: OrderedDict(a=value),
}


def wrapped(wrap, levels, value=1):
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_hundred_levels_come_back(wrap):
    value = wrapped(WRAPS[wrap], 100)
    assert same(through_a_file(value), value)


@pytest.mark.parametrize("wrap", [*WRAPS, "deque", "set"])
def test_more_levels_are_refused(wrap):
    make = {**WRAPS, "deque": lambda value: deque([value]), "set": lambda value: frozenset([value])}
    for levels in (101, 150):
        with pytest.raises(CheckpointError, match="nested more than 100 levels deep"):
            encode(wrapped(make[wrap], levels))


def test_the_innermost_empty_container_counts():
    encode(wrapped(WRAPS["list"], 99, []))
    with pytest.raises(CheckpointError, match="levels deep"):
        encode(wrapped(WRAPS["list"], 100, []))


def contains_itself():
    values = [], {}, deque(), OrderedDict()
    values[0].append(values[0])
    values[1]["a"] = [values[1]]
    values[2].append(values[2])
    values[3]["a"] = values[3]
    return values


@pytest.mark.parametrize("value", contains_itself(), ids=lambda value: type(value).__name__)
def test_what_contains_itself_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match="contains itself") as caught:
        encode({"mine": value}, "callback 'Mine'")
    assert str(caught.value).startswith("callback 'Mine'['mine']")


@pytest.mark.parametrize("levels", [0, 1])
def test_versions_that_contain_themselves_are_refused(levels):
    value = OrderedDict(a=1)
    value._metadata = {"": value} if levels else value
    with pytest.raises(CheckpointError, match="contains itself"):
        encode({"mine": value})


# ---- expanded tensors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.0).expand(1000),
        torch.arange(3.0)[:, None].expand(3, 50),
        torch.arange(5.0).unfold(0, 3, 1),
    ],
    ids=["scalar", "column", "windows"],
)
def test_what_is_larger_than_its_memory_is_written_in_full(tensor, tmp_path):
    """A reader takes such a tensor for a trap."""
    from fitkit.checkpointing.storage import atomic_write, safe_load

    atomic_write.write(encode({"a": tensor}), tmp_path / "a.pth")
    assert torch.equal(safe_load.read(tmp_path / "a.pth")["a"], tensor)


def test_the_tensor_map_is_called_once_for_each_tensor_and_gets_it_plain():
    asked = []

    def place(tensor):
        asked.append(tensor)
        return tensor.clone()

    value = {"a": nn.Parameter(torch.ones(2)), "b": [torch.ones(3).as_subclass(Marked)], "c": 1}
    plain = encode(value, tensor_map=place)
    assert [type(one) for one in asked] == [torch.Tensor, torch.Tensor]
    assert not any(one.requires_grad for one in asked)
    value["a"].data.zero_()
    assert plain["a"].tolist() == [1.0, 1.0]
