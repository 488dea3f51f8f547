"""Comparing: nothing differs from itself, and whatever is changed is found where it is."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.core.tree_diff import MISSING, compare, differing_leaves

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(values)
    numbers = torch.randint(0, 5, shape, generator=generator).to(dtype)
    if dtype.is_floating_point and numbers.numel() and draw(st.booleans()):
        numbers.view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -0.0]))
    return numbers


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=5),
    st.binary(max_size=5), st.frozensets(st.floats(), max_size=3),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=4), st.integers(), st.floats(), st.booleans(), st.none())
STATES = st.recursive(
    ATOMS | tensors(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def reread(state):
    """As two files have it: no object is shared."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@settings(max_examples=60)
@given(STATES)
def test_nothing_differs_from_itself(state):
    assert list(compare(state, state)) == []
    assert list(compare(state, reread(state))) == []


def leaves(state, keys=()):
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from leaves(value, (*keys, key))
    elif isinstance(state, (list, tuple)) and state:
        for number, value in enumerate(state):
            yield from leaves(value, (*keys, number))
    else:
        yield keys, state


def put(state, keys, value):
    """A copy with another value in one place."""
    if not keys:
        return value
    if isinstance(state, dict):
        return {k: put(v, keys[1:], value) if k is keys[0] else v for k, v in state.items()}
    changed = [put(v, keys[1:], value) if n == keys[0] else v for n, v in enumerate(state)]
    return type(state)(changed)


def another(leaf):
    """The smallest change that there is."""
    if isinstance(leaf, torch.Tensor) and leaf.numel():
        changed = leaf.clone().contiguous()
        last = changed.view(-1)[-1:]
        if leaf.dtype is torch.bool:
            last.logical_not_()
        else:
            last.view(torch.uint8)[0] ^= 1
        return changed
    if isinstance(leaf, torch.Tensor):
        return leaf.reshape(*leaf.shape, 1)
    if type(leaf) is float:
        return math.nextafter(leaf, math.inf) if math.isfinite(leaf) else 0.0
    if type(leaf) is bool:
        return int(leaf)
    if type(leaf) is int:
        return leaf + 1
    if isinstance(leaf, (str, bytes)):
        return leaf + type(leaf)(leaf[:1] or ("x" if isinstance(leaf, str) else b"x"))
    return [0] if isinstance(leaf, (frozenset, complex, dict)) or leaf is None else {"x": 1}


@settings(max_examples=80)
@given(STATES, st.data())
def test_every_change_of_a_leaf_is_found_where_it_is(state, data):
    keys, leaf = data.draw(st.sampled_from(list(leaves(state))))
    changed = put(state, keys, another(leaf))
    for found in (list(compare(state, changed)), list(compare(changed, state))):
        assert len(found) >= 1
        path = "/".join(map(str, keys))
        assert all(one.path == path or one.path.startswith(path) for one in found)
    (at, *_) = next(differing_leaves(state, changed))
    assert [*map(repr, at[: len(keys)])] == [*map(repr, keys)]


@settings(max_examples=40)
@given(STATES, STATES)
def test_both_directions_tell_the_same(first, second):
    there = {(one.path, repr(one.first), repr(one.second)) for one in compare(first, second)}
    back = {(one.path, repr(one.second), repr(one.first)) for one in compare(second, first)}
    assert there == back


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, True), (1, 1.0), (0.0, -0.0), ([1], [1, 2]), ({"a": 1}, {}), ({1: 2}, {True: 2}),
        ("a", b"a"), ([], {}), ({"a": {}}, {}), (None, 0), ({1.5}, {2.5}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)), (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), [0.0, 0.0]), (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.zeros(0), torch.zeros(0, 1)), (torch.eye(2), torch.eye(2).to_sparse()),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (torch.ones(2), torch.ones(2, device="meta")),
        (np.zeros(2), np.ones(2)), (np.zeros(2), np.zeros(2, dtype=int)),
    ],
)  # fmt: skip
def test_small_differences_count(first, second):
    assert list(compare(first, first)) == []
    assert len(list(compare(first, second))) >= 1
    assert len(list(compare(second, first))) >= 1


def test_how_far_tensors_are_apart():
    first = torch.tensor([1.0, 2.0, 3.0, math.inf])
    second = torch.tensor([1.0, 2.5, 2.0, math.inf])
    (one,) = compare({"w": first}, {"w": second})
    assert (one.path, one.num_different, one.largest) == ("w", 2, 1.0)
    (one,) = compare(torch.tensor([True, False]), torch.tensor([True, True]))
    assert (one.num_different, one.largest) == (1, 1.0)
    (one,) = compare(torch.tensor([1 + 1j]), torch.tensor([4 + 5j]))
    assert (one.num_different, one.largest) == (1, 5.0)
    (one,) = compare(torch.tensor([0, 255], dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8))
    assert (one.num_different, one.largest) == (1, 255.0)
    (one,) = compare(torch.tensor([1.0]), torch.tensor([math.nan]))
    assert math.isnan(one.largest)


def test_a_sparse_tensor_is_never_made_dense():
    size, options = (10**6, 10**6), {"check_invariants": True}
    huge = torch.sparse_coo_tensor([[5], [7]], [1.0], size, **options)
    other = torch.sparse_coo_tensor([[5], [8]], [1.0], size, **options)
    assert [one.path for one in compare({"s": huge}, {"s": other})] == ["s/indices"]


def test_values_that_are_only_on_one_side():
    (one,) = compare({"a": {"b": 1}}, {"a": {}})
    assert (one.path, one.first, one.second) == ("a/b", 1, MISSING)
    (one,) = compare([1], [1, None])
    assert (one.path, one.first, one.second) == ("1", MISSING, None)
    assert repr(MISSING) == "missing"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
def test_compressed_tensors(layout):
    first, second = (one.to_sparse(layout=layout) for one in (torch.eye(2), 2 * torch.eye(2)))
    assert list(compare(first, first)) == []
    assert [one.path for one in compare(first, second)] == ["values"]


def test_ignored_paths():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    second = {"a": {"b": 2, "c": [1, 3]}, "d": 2}

    def paths(*ignore):
        return [one.path for one in compare(first, second, ignore)]

    assert paths() == ["a/b", "a/c/1", "d"]
    assert paths("a") == ["d"]
    assert paths("a/c", "d") == ["a/b"]
    assert paths("*/c/?") == ["a/b", "d"]
    assert paths("b", "c", "a/") == ["a/b", "a/c/1", "d"]


def test_arguments_are_not_changed():
    first, second = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    before = copy.deepcopy((first, second))
    list(compare(first, second))
    assert list(compare(before, (first, second))) == []


def test_one_element_of_any_stride_is_compared():
    """torch calls it contiguous, but does not see it as bytes."""
    first, second = torch.ones(1, 3)[:, -1], torch.zeros(1, 3)[:, -1]
    assert list(differing_leaves(first, first.clone())) == []
    assert len(list(differing_leaves(first, second))) == 1
