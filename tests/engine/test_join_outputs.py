"""Outputs of batches: which are structures, which have one object per sample, what is refused."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fitkit import DataError, NNHandler
from fitkit.engine.join_outputs import (
    BatchOutputs,
    copy_to_host,
    join,
    require_joinable,
    select_tensors,
)

Heads = namedtuple("Heads", ["mean", "scale"])


@dataclass(frozen=True)
class Fields:
    mean: Any
    scale: Any = None


@dataclass
class NamedOutput(OrderedDict):
    """As transformers' ``ModelOutput``: a mapping and attributes; it can be made from a dict."""

    logits: Any = None
    cache: Any = None

    def __post_init__(self):
        if isinstance(self.logits, dict):
            given, self.logits = self.logits, None
            for name, value in given.items():
                setattr(self, name, value)
        for name in ("logits", "cache"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


class Cache:
    """An object that is no tensor."""


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def predict(function, size=7, batch_size=3, **options):
    x = torch.arange(1.0, size + 1).unsqueeze(1)
    return NNHandler(Net(function), "cpu").predict(x, batch_size=batch_size, **options)


def joined(*batches):
    batches = [BatchOutputs(*batch) for batch in batches]
    for batch in batches:
        require_joinable(batch)
    return join(batches)


X = torch.arange(1.0, 8).unsqueeze(1)


# ---- structures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        lambda out: {"a": out, "b": {"c": 2 * out}},
        lambda out: OrderedDict(b=out, a=-out),
        lambda out: (out, [2 * out]),
        lambda out: (out, (3 * out, {"d": out})),
        lambda out: Heads(out, 2 * out),
        lambda out: [out, out],
        lambda out: [out, {"a": -out}],
    ],
)
def test_structures_are_joined_part_by_part(shape):
    outputs = predict(shape)
    expected = shape(X)
    assert type(outputs) is type(expected)
    torch.testing.assert_close(outputs, expected)


def test_a_dataclass_is_a_structure():
    outputs = predict(lambda x: Fields(x, (2 * x,)))
    assert type(outputs) is Fields
    assert torch.equal(outputs.mean, X)
    assert torch.equal(outputs.scale[0], 2 * X)


def test_a_dataclass_keeps_what_its_constructor_does_not_take():
    @dataclass
    class Made:
        mean: Any
        double: Any = field(init=False, default=None)

        def __post_init__(self):
            self.double = 2 * self.mean

    assert torch.equal(predict(Made).double, 2 * X)


def test_named_outputs_keep_their_type():
    outputs = predict(lambda x: NamedOutput(logits=x))
    assert type(outputs) is NamedOutput
    assert list(outputs) == ["logits"]
    assert torch.equal(outputs.logits, X)
    assert torch.equal(outputs["logits"], X)


def test_a_mapping_type_that_cannot_be_made_from_a_dict_becomes_a_dict():
    @dataclass
    class Takes(OrderedDict):
        first: Any = None

        def __post_init__(self):
            if isinstance(self.first, torch.Tensor):
                self["first"] = self.first

    assert predict(lambda x: Takes(x)).keys() == {"first"}
    assert torch.equal(predict(lambda x: Takes(x))["first"], X)


def test_what_torch_returns_for_an_operation_is_a_structure():
    values, indices = predict(lambda x: torch.cat([x, -x], 1).max(dim=1))
    assert torch.equal(values, X[:, 0])
    assert torch.equal(indices, torch.zeros(7, dtype=torch.int64))


# ---- one object per sample ----------------------------------------------------------------------


def detections(x):
    return [{"boxes": torch.full((int(v), 4), float(v)), "label": f"n{int(v)}"} for v in x[:, 0]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 9])
def test_one_dict_per_sample_stays_one_dict_per_sample(batch_size):
    outputs = predict(detections, batch_size=batch_size)
    assert [len(output["boxes"]) for output in outputs] == [1, 2, 3, 4, 5, 6, 7]
    assert [output["label"] for output in outputs] == [f"n{i}" for i in range(1, 8)]
    assert all((output["boxes"] == i + 1).all() for i, output in enumerate(outputs))


@pytest.mark.parametrize("batch_size", [2, 3])
def test_one_tensor_per_sample_may_have_any_number_of_rows(batch_size):
    # the second batch of two has objects of 2 and 2 rows, as a structure would
    rows = [1, 3, 2, 2, 2, 4, 0]
    outputs = predict(
        lambda x: [torch.full((rows[int(v) - 1], 2), float(v)) for v in x[:, 0]],
        batch_size=batch_size,
    )
    assert [len(output) for output in outputs] == rows


def test_texts_are_objects_per_sample():
    assert predict(lambda x: [f"{v:.0f}" for v in x[:, 0]]) == list("1234567")


def test_lists_inside_a_structure_follow_the_same_rule():
    outputs = predict(lambda x: {"found": detections(x), "score": x})
    assert [len(found["boxes"]) for found in outputs["found"]] == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(outputs["score"], X)


def test_two_heads_in_batches_of_two_are_told_by_the_short_last_batch():
    outputs = predict(lambda x: [x, -x], size=7, batch_size=2)
    assert [len(part) for part in outputs] == [7, 7]


@pytest.mark.parametrize(("size", "batch_size"), [(2, 2), (6, 2)])
def test_a_list_that_may_be_both_is_refused(size, batch_size):
    with pytest.raises(DataError, match=r"2 elements for each batch of 2 samples.*Return a tuple"):
        predict(lambda x: [x, -x], size=size, batch_size=batch_size)
    assert isinstance(predict(lambda x: (x, -x), size=size, batch_size=batch_size), tuple)


def test_one_sample_is_the_same_either_way():
    assert torch.equal(predict(lambda x: [x], size=1)[0], torch.ones(1, 1))


def test_a_list_that_is_neither_is_refused():
    glued = [{"boxes": torch.zeros(4, 2)}, {"boxes": torch.zeros(5, 2)}]
    with pytest.raises(DataError, match=r"list of 2 elements for a batch of 3 samples: return one"):
        joined((glued, 3))
    with pytest.raises(DataError, match="list of 2 elements for a batch of an unknown number"):
        joined((glued, None))


def test_batches_that_disagree_are_refused():
    heads = [torch.zeros(3, 1), torch.zeros(3, 1)]
    boxes = [torch.zeros(5, 1), torch.zeros(4, 1)]
    with pytest.raises(DataError, match=r"list of 2 elements for a batch of 3 samples"):
        joined((boxes, 2), (heads, 3))


def test_texts_of_a_batch_that_cannot_be_counted_are_joined():
    assert joined((["a", "b"], None), (["c"], None)) == ["a", "b", "c"]


# ---- what cannot be joined ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        (torch.tensor(1.0), "output is a scalar for a batch.*return one row per sample"),
        ("text", "output must be a tensor.*received str: pass tensors_only=True"),
        ({"a": None}, r"output\['a'\] must be a tensor.*received NoneType"),
        ((torch.ones(2), {"b": (Cache(),)}), r"output\[1\]\['b'\]\[0\].*received Cache"),
        (pack_sequence([torch.ones(2)]), "received PackedSequence"),
        (Fields(torch.ones(2)), r"output\['scale'\].*received NoneType"),
    ],
)
def test_outputs_that_cannot_be_joined_are_named(outputs, sentence):
    with pytest.raises(DataError, match=sentence):
        joined((outputs, 2))


def test_they_are_refused_after_the_first_batch():
    batches = []

    def count(x):
        batches.append(len(x))
        return {"logits": x, "cache": Cache()}

    with pytest.raises(DataError, match=r"output\['cache'\]"):
        predict(count)
    assert batches == [3]


def test_so_is_what_only_a_later_batch_has():
    with pytest.raises(DataError, match="is a scalar for a batch"):
        predict(lambda x: x[:, 0] if len(x) > 1 else x[0, 0])


@pytest.mark.parametrize(
    "second",
    [
        torch.zeros(2, 5),
        {"a": torch.zeros(2, 3)},
        (torch.zeros(2, 3),),
        [torch.zeros(3), torch.zeros(3)],
    ],
    ids=["shape", "kind", "tuple", "list"],
)
def test_outputs_that_differ_between_batches_are_named(second):
    with pytest.raises(DataError, match="differs between batches"):
        joined((torch.zeros(2, 3), 2), (second, 2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
        ((torch.zeros(2),), (torch.zeros(2), torch.zeros(2))),
    ],
)
def test_nestings_that_differ_between_batches_are_named(first, second):
    with pytest.raises(DataError, match="differs"):
        joined((first, 2), (second, 2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 2, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])


@pytest.mark.parametrize("size", [6, 7])
def test_the_last_state_of_a_recurrent_network_is_not_joined_over_its_layers(size):
    handler = NNHandler(Recurrent(), "cpu")
    x = X[:1].repeat(size, 1)
    with pytest.raises(DataError, match=r"\[1\]\[0\] (has the shape \(1, 3, 2\)|differs between)"):
        handler.predict(x, batch_size=3)
    assert handler.predict(x, batch_size=size)[1][0].shape == (1, size, 2)
    handler.set_predict_step(lambda handler, batch: handler.model(batch)[0])
    assert handler.predict(x, batch_size=3).shape == (size, 1, 2)


def test_parts_with_other_numbers_of_rows_are_joined():
    nodes = torch.arange(10.0)[:, None]
    outputs = joined(((torch.ones(3, 1), nodes[:4]), 3), ((torch.ones(3, 1), nodes[4:]), 3))
    assert torch.equal(outputs[1], nodes)
    wide = [((torch.ones(3, 1), torch.ones(rows, 3)), 3) for rows in (4, 6)]
    assert joined(*wide)[1].shape == (10, 3)


# ---- tensors_only -------------------------------------------------------------------------------


def test_a_mapping_loses_the_parts_that_are_no_tensors():
    outputs = predict(
        lambda x: {"logits": x, "cache": Cache(), "none": None, "text": "a", "deep": {"b": None}},
        tensors_only=True,
    )
    assert list(outputs) == ["logits"]
    assert torch.equal(outputs["logits"], X)


def test_named_outputs_lose_them_too():
    outputs = predict(lambda x: NamedOutput(logits=x, cache=Cache()), tensors_only=True)
    assert type(outputs) is NamedOutput
    assert list(outputs) == ["logits"]
    assert outputs.cache is None


def test_elsewhere_the_places_of_the_other_parts_stay():
    first, none, (last,) = predict(lambda x: (x, Cache(), (-x,)), tensors_only=True)
    assert none is None
    assert torch.equal(first, -last)
    assert predict(lambda x: Fields(x, Cache()), tensors_only=True).scale is None
    assert predict(lambda x: Heads(x, None), tensors_only=True).scale is None


def test_objects_per_sample_stay_whole():
    outputs = predict(lambda x: (detections(x), [str(v) for v in x]), tensors_only=True)
    assert [found["label"] for found in outputs[0]] == [f"n{i}" for i in range(1, 8)]
    assert outputs[1] is None


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"has no tensor \(dict\), so tensors_only=True leaves"):
        select_tensors(BatchOutputs({"cache": Cache()}, 2))


# ---- on the host --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
        (torch.int8, torch.int8),
        (torch.bool, torch.bool),
        (torch.complex64, torch.complex64),
    ],
)
def test_numpy_takes_every_output(dtype, expected):
    outputs = copy_to_host({"a": [torch.ones(3).to(dtype)]})["a"][0]
    assert outputs.dtype is expected
    assert outputs.numpy().sum() == 3


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_half_complex_numbers_become_whole_ones():
    assert copy_to_host(torch.ones(2).to(torch.complex32)).dtype is torch.complex64


def test_a_bf16_model_and_bf16_precision_give_float32():
    model = nn.Linear(1, 2).bfloat16()
    outputs = NNHandler(model, "cpu").predict(X.bfloat16())
    assert outputs.dtype is torch.float32
    assert torch.equal(outputs, model(X.bfloat16()).float())
    whole = NNHandler(nn.Linear(1, 2), "cpu").predict(X, precision="bf16")
    assert whole.numpy().dtype == "float32"


def test_nested_outputs_and_objects_per_sample_become_float32():
    half = X.half()
    outputs = predict(lambda x: {"a": (x.half(),), "b": [{"c": v.half()} for v in x]})
    assert torch.equal(outputs["a"][0], half.float())
    assert {found["c"].dtype for found in outputs["b"]} == {torch.float32}


def test_a_model_may_fill_the_same_memory_for_each_batch():
    memory = torch.empty(3, 1)
    outputs = predict(lambda x: memory[: len(x)].copy_(x))
    assert torch.equal(outputs, X)
    objects = predict(lambda x: list(memory[: len(x)].copy_(x)))
    assert [float(found) for found in objects] == [1, 2, 3, 4, 5, 6, 7]


def test_objects_per_sample_may_be_used_in_autograd():
    weight = torch.ones(1, requires_grad=True)
    outputs = predict(lambda x: [{"a": v} for v in x])
    (outputs[0]["a"] * weight).sum().backward()
    assert float(weight.grad) == 1.0


def test_a_packed_sequence_stays_one():
    packed = pack_sequence([torch.ones(3).half(), torch.ones(2).half()])
    copied = copy_to_host(packed)
    assert isinstance(copied, PackedSequence)
    assert copied.data.dtype is torch.float32
    assert torch.equal(copied.batch_sizes, packed.batch_sizes)
