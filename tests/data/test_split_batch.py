from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, default_collate

from fitkit.core.errors import DataError
from fitkit.core.types import ModelType
from fitkit.data.split_batch import (
    INPUT_KEYS,
    TARGET_KEYS,
    Fields,
    as_fields,
    collates_fields,
    describe,
    is_list_of_samples,
    make_split,
    split_inputs,
    split_supervised,
)

X, Y = torch.zeros(2, 3), torch.ones(2)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("model_type", [ModelType.CLASSIFICATION, ModelType.REGRESSION])
@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y), {"x": X, "y": Y}])
def test_a_supervised_batch_is_a_pair_or_a_mapping(model_type, batch):
    inputs, targets = make_split(model_type)(batch)
    assert inputs is X
    assert targets is Y


@pytest.mark.parametrize("input_key", INPUT_KEYS)
@pytest.mark.parametrize("target_key", TARGET_KEYS)
def test_every_known_key_is_found(input_key, target_key):
    assert split_supervised({target_key: Y, input_key: X}) == (X, Y)


def test_other_keys_of_a_mapping_are_inputs_by_name():
    batch = OrderedDict(labels=Y, ids=X, mask=X)
    inputs, targets = split_supervised(batch)
    assert inputs == {"ids": X, "mask": X}
    assert targets is Y
    assert list(batch) == ["labels", "ids", "mask"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"received a tensor of shape \(2, 3\)\. .*model_type='generative'"),
        ((X,), "received a tuple of 1 elements"),
        ([X, X, Y], r"received a list of 3 elements\. For several inputs make the batch \(\(first"),
        (None, "received a NoneType"),
        ("ab", "received a str"),
        ({"x": X}, r"exactly one of .* received the keys 'x'\. Rename the key"),
        ({"x": X, "y": Y, "label": Y}, "exactly one of .*'label', 'x', 'y'"),
        ({1: X, "b": Y}, "received the keys '1', 'b'"),
    ],
)
def test_a_batch_that_cannot_be_split_says_what_it_is(batch, message):
    with pytest.raises(DataError, match=message):
        split_supervised(batch)


Swapped = namedtuple("Swapped", "label image")
Named = namedtuple("Named", "ids mask labels")


def test_the_names_of_a_named_tuple_say_where_its_targets_are():
    assert split_supervised(Swapped(Y, X)) == (X, Y)
    assert split_inputs(Swapped(Y, X)) is X
    inputs, targets = split_supervised(Named(X, X, Y))
    assert inputs == {"ids": X, "mask": X}
    assert targets is Y
    assert split_inputs(Named(X, X, Y)) == {"ids": X, "mask": X}
    assert split_supervised(namedtuple("Both", "y labels")(X, Y)) == (X, Y)
    with pytest.raises(DataError, match=r"a batch must be .* a Triple of 3 elements"):
        split_supervised(namedtuple("Triple", "a b c")(X, X, Y))


@dataclass
class Graph:
    x: torch.Tensor
    y: torch.Tensor | None = None

    def to(self, device):
        return Graph(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


def test_an_object_is_the_inputs_and_has_its_targets():
    graph, sample = Graph(X, Y), Sample(X, Y)
    assert split_supervised(graph) == (graph, Y)
    assert split_supervised(sample) == (sample, Y)
    assert split_supervised((graph, X)) == (graph, X)
    assert split_inputs(graph) is graph
    assert split_inputs((graph, Y)) is graph
    assert make_split(ModelType.GENERATIVE)(graph) == (graph, graph)
    with pytest.raises(DataError, match=r"a Graph as a batch needs its targets .* and has none: m"):
        split_supervised(Graph(X))


def test_a_packed_sequence_is_one_input():
    packed = pack_sequence([X, X[:1]])
    assert split_inputs(packed) is packed
    assert split_inputs((packed,)) is packed
    assert split_supervised((packed, Y)) == (packed, Y)
    with pytest.raises(DataError, match="received a PackedSequence"):
        split_supervised(packed)


def test_targets_may_be_none():
    assert split_supervised((X, None)) == (X, None)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ([X, X], True),
        ([X], True),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 8, 6), torch.zeros(3, 1, 1)], True),
        (["a", "b"], True),
        ([X, Y], False),
        ([X, X.long()], False),
        ([X, [X]], False),
        ((X, X), False),
        ([], False),
        (X, False),
    ],
)
def test_a_list_of_one_kind_may_have_an_entry_per_sample(batch, expected):
    assert is_list_of_samples(batch) is expected


@pytest.mark.parametrize("samples", [[((1, 2), 3)] * 2, [([1, 2], 3)] * 2, [((1, (2, 3)), 4)] * 2])
def test_fields_of_collated_samples_are_tuples_again(samples):
    batch = as_fields(default_collate(samples))
    assert type(batch) is list
    assert type(batch[0]) is Fields
    assert isinstance(batch[0], tuple)
    assert [type(part) for part in batch[0]][-1] in (torch.Tensor, Fields)
    named = as_fields(default_collate([{"x": (1, 2), "y": "a"}] * 2))
    assert type(named["x"]) is Fields
    assert list(named["y"]) == ["a", "a"]


def test_a_flat_batch_is_not_copied():
    batch = [X, Y]
    assert as_fields(batch) is batch
    assert as_fields(X) is X


def test_loaders_whose_lists_are_fields():
    assert collates_fields(DataLoader(X))
    assert not collates_fields(DataLoader(X, collate_fn=list))
    assert not collates_fields(DataLoader(X, batch_size=None))
    assert not collates_fields([X])


@pytest.mark.parametrize("batch", [X, (X,), [X, Y], {"x": X}, {"x": X, "y": Y}])
def test_generative_targets_are_the_inputs(batch):
    inputs, targets = make_split(ModelType.GENERATIVE)(batch)
    assert inputs is X
    assert targets is X


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y, Y], {"a": X}])
def test_a_score_based_batch_is_all_inputs(batch):
    assert make_split(ModelType.SCORE_BASED)(batch) == (batch, None)


def test_a_score_based_batch_must_hold_tensors():
    with pytest.raises(DataError, match="must hold tensors, received a int"):
        make_split(ModelType.SCORE_BASED)(3)


def test_inputs_for_prediction():
    assert split_inputs({"ids": X, "labels": Y, "y": Y}) == {"ids": X}
    assert split_inputs(((X, Y),)) == (X, Y)
    for batch in ((X, Y, Y), (), None, 3):
        with pytest.raises(DataError, match="a batch to predict must be inputs"):
            split_inputs(batch)


def test_describe():
    assert describe({"b": 1, "a": 2}) == "a mapping with the keys 'a', 'b'"
    assert describe(3.0) == "a float"
