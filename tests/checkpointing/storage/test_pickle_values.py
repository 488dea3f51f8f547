from __future__ import annotations

import time
from collections import OrderedDict

import pytest
import torch

from fitkit import DamagedCheckpointError
from fitkit.checkpointing.storage import safe_load
from fitkit.checkpointing.storage.pickle_values import (
    Dict,
    LargeInt,
    LongText,
    Sizes,
    Tensor,
    TrapError,
    Walk,
)


def measure(content):
    return Walk(10**9, 10**9).measure(content)


def laughs(levels: int, width: int = 2):
    value = [1]
    for _ in range(levels):
        value = [value] * width
    return value


def test_what_is_used_twice_is_met_twice():
    inner = [1, 2, 3]
    assert measure([inner, inner]) == (1, 8, 0)
    assert measure(Dict([b"a", inner, b"b", (inner,)])) == (2, 11, 0)
    assert measure(laughs(20))[1] > 2**20


def test_bytes_of_tensors_long_text_and_long_keys():
    tensor = Tensor((), 100)
    assert measure([tensor, tensor])[2] == 200
    assert measure([Tensor([tensor, None])])[2] == 100, "a parameter is its tensor"
    assert measure([LongText(b"x" * 300), b"short", LargeInt(2**800)])[2] == 400
    with_keys = Dict([LongText(b"x" * 300), 1])
    with_keys.num_bytes = 300
    assert measure([with_keys, with_keys])[2] == 600
    assert measure([with_keys, Dict([b"a", tensor])])[2] == 400
    assert measure([Sizes((1, 2))]) == (0, 1, 0)


@pytest.mark.parametrize("levels", [1, 2, 210])
def test_levels_are_those_of_the_deepest_place(levels):
    value = [1]
    for _ in range(levels):
        value = [value]
    assert Walk(10**6, 10**6).measure(value, levels)[0] == levels
    for content in (value, [[], value][1:], [value[0], [value[0]]]):
        with pytest.raises(TrapError, match="nested more than"):
            Walk(10**6, 10**6).measure(content, levels - (content is value))
    shared = [[]]
    assert measure([shared, [shared]])[0] == 3
    with pytest.raises(TrapError, match="nested more than"):
        Walk(10**6, 10**6).measure([shared, [[shared]]], 3)


def test_a_tensor_takes_as_long_as_several_numbers():
    assert measure([Tensor((), 8)] * 10)[1] == 210
    assert measure([1.0] * 10)[1] == 10


def test_a_container_in_itself_has_no_end():
    value = []
    value += [value, value]
    with pytest.raises(TrapError, match="nested more than"):
        measure(value)


def test_each_container_is_looked_at_once():
    value = [list(range(1000))] * 1000
    for _ in range(3):
        value = [value] * 1000
    began = time.process_time()
    assert Walk(10**18, 0).measure(value)[1] > 10**15
    assert time.process_time() - began < 0.5


# ---- files --------------------------------------------------------------------------------------

SHARED = {
    "rows": lambda: [[1] * 1000] * 1000,
    "zeros": lambda: {"a": [[0] * 1000] * 1000},
    "deep": lambda: laughs(18),
    "dicts": lambda: [dict.fromkeys(range(500), "text")] * 1000,
    "ordered": lambda: [OrderedDict(a=[1] * 100)] * 5000,
    "text": lambda: ["x" * 10_000] * 20_000,
    "a tensor": lambda: [torch.zeros(1000)] * 50_000,
    "a mask": lambda: torch.zeros(1).expand(60_000_000),
}


def most_shared(value):
    while type(value) in (list, dict):
        value = next(iter(value.values())) if type(value) is dict else value[0]
    return value


@pytest.mark.parametrize("kind", SHARED)
def test_what_is_shared_and_small_in_memory_is_read_and_stays_shared(tmp_path, kind):
    path = tmp_path / "a.pth"
    saved = SHARED[kind]()
    torch.save(saved, path)
    assert path.stat().st_size < 1e6
    began = time.process_time()
    found, described = safe_load.read(path), safe_load.read_without_tensors(path)
    assert time.process_time() - began < 1
    if isinstance(saved, list):
        assert len(found) == len(described) == len(saved)
        assert found[0] is found[1]
        assert described[0] is described[1]
        assert all(one is found[0] for one in found)
    if not isinstance(most_shared(saved), torch.Tensor):
        assert described == found == saved


TOO_MUCH = {
    "rows": lambda: [[1] * 2000] * 2000,
    "deep": lambda: laughs(60),
    "dicts": lambda: [dict.fromkeys(range(1000), "text")] * 2000,
    "text": lambda: ["x" * 10_000] * 100_000,
    "bytes": lambda: [b"x" * 10_000] * 100_000,
    "a tensor": lambda: [torch.zeros(1000)] * 200_000,
    "views": lambda: [torch.zeros(1).expand(60_000_000 + n) for n in range(2)],
    "attributes": lambda: [with_note()] * 2000,
}


def with_note():
    tensor = torch.zeros(1)
    tensor.note = [[1] * 1000] * 1000
    return tensor


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_what_readers_would_walk_over_for_minutes_is_refused(tmp_path, kind):
    path = tmp_path / "a.pth"
    torch.save(TOO_MUCH[kind](), path)
    began = time.process_time()
    for read in (safe_load.read, safe_load.read_without_tensors):
        with pytest.raises(DamagedCheckpointError, match="uses many times"):
            read(path)
    assert time.process_time() - began < 1


def test_a_long_file_may_hold_many_values(tmp_path):
    """Each is written for itself: readers take the time that the size is worth."""
    path = tmp_path / "a.pth"
    torch.save(list(range(256)) * 6000, path)
    assert len(safe_load.read(path)) == 1_536_000
