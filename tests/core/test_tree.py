from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from fitkit.core.tree import (
    is_plain_dataclass,
    is_sequence,
    iterate_leaves,
    iterate_tensors,
    map_leaves,
    map_tensors,
    shapes_of,
)

Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "tree",
    [
        torch.ones(2),
        [torch.ones(2)],
        (torch.ones(2), "text", None),
        Pair(torch.ones(2), [1]),
        {"a": torch.ones(2), "b": {"c": (torch.ones(1),)}},
        OrderedDict(a=torch.ones(2)),
        UserDict(a=torch.ones(2)),
        [],
        {},
    ],
)
def test_the_nesting_stays_and_the_original_is_untouched(tree):
    mapped = map_tensors(lambda tensor: tensor * 3, tree)
    assert type(mapped) is type(tree)
    assert [t.tolist() for t in iterate_tensors(mapped)] == [
        (t * 3).tolist() for t in iterate_tensors(tree)
    ]
    assert all((tensor == 1).all() for tensor in iterate_tensors(tree))


def test_a_mapping_that_takes_no_mapping_becomes_a_dict():
    tree = defaultdict(list, a=torch.ones(1))
    assert map_tensors(torch.neg, tree) == {"a": torch.tensor([-1.0])}
    assert map_tensors(torch.neg, Counter(a=2)) == {"a": 2}


@pytest.mark.parametrize("spread", [False, True])
def test_a_mapping_that_takes_a_mapping_as_something_else_becomes_a_dict(spread):
    class Output(OrderedDict):
        """As a dataclass with fields: its first argument is a field."""

        def __init__(self, logits, loss=None):
            super().__init__(logits=logits)
            if spread:
                self["loss"] = loss

    tree = Output(torch.ones(2))
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert type(mapped) is dict
    assert list(mapped) == list(tree)
    assert torch.equal(mapped["logits"], torch.full((2,), 2.0))


def test_other_leaves_are_seen_by_map_leaves_only():
    tree = ("text", [1, None])
    assert map_tensors(lambda _: 0, tree) == tree
    assert map_leaves(lambda leaf: (leaf,), tree) == (("text",), [(1,), (None,)])
    assert list(iterate_leaves(tree)) == ["text", 1, None]


def test_a_packed_sequence_is_one_leaf():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    assert list(iterate_leaves([packed])) == [packed]
    assert map_leaves(lambda leaf: leaf, packed) is packed


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ((torch.zeros(3, 2), {"y": torch.zeros(3).long()}), "float32 (3, 2), int64 (3,)"),
        (["text"], "list"),
        (None, "NoneType"),
    ],
)
def test_shapes_of_a_batch(tree, text):
    assert shapes_of(tree) == text


@dataclass(frozen=True)
class Batch:
    """A frozen dataclass with a field that its constructor does not take."""

    x: object
    name: str = "batch"
    extra: object = field(default=None, init=False)


def test_a_dataclass_is_copied_with_its_tensors():
    batch = Batch((torch.ones(2), [torch.ones(1)]))
    object.__setattr__(batch, "extra", torch.ones(1))
    doubled = map_tensors(lambda tensor: tensor * 2, {"a": batch})["a"]
    assert type(doubled) is Batch
    assert doubled.x[0].tolist() == [2, 2]
    assert doubled.x[1][0].tolist() == [2]
    assert (doubled.extra.tolist(), doubled.name) == ([2], "batch")
    assert batch.x[0].tolist() == [1, 1]
    plain = Batch(3)
    assert map_tensors(torch.neg, plain) is plain
    assert map_leaves(lambda leaf: leaf, Batch) is Batch


def test_what_moves_itself_is_a_leaf():
    @dataclass
    class Graph:
        x: torch.Tensor

        def to(self, device):
            return device

    graph = Graph(torch.ones(1))
    assert map_leaves(lambda leaf: type(leaf), [graph]) == [Graph]
    assert not is_plain_dataclass(graph)


def test_a_packed_sequence_is_no_sequence_of_parts():
    assert is_sequence((1,))
    assert is_sequence([])
    assert not is_sequence(pack_sequence([torch.ones(2)]))
    assert not is_sequence("ab")


@pytest.mark.parametrize("leaf", [None, True, 1, 1.0, 1j, "text", b"bytes"])
def test_plain_leaves_are_not_compared_with_abstract_classes(leaf, monkeypatch):
    """For each new type Python looks through all mappings there are, which takes milliseconds."""
    monkeypatch.setattr("fitkit.core.tree.Mapping", None)  # isinstance(leaf, None) raises
    assert map_leaves(lambda value: [value], leaf) == [leaf]
    assert list(iterate_leaves(leaf)) == [leaf]
