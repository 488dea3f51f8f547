"""How the inputs of a batch become arguments of a model, for every kind of ``forward``."""

import re
from collections import UserDict, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fitkit.core.errors import DataError
from fitkit.data.model_arguments import (
    Signature,
    call_model,
    declares_one_list,
    model_arguments,
    signature_of,
)

X, Y = torch.zeros(2, 3), torch.ones(2)
Pair = namedtuple("Pair", "first second")


def model_of(function):
    class Model(nn.Module):
        forward = function

    return Model()


def one(self, x):
    return x


def two(self, a, b):
    return a, b


def optional(self, a, b=0):
    return a, b


def images(self, images: list[Tensor], targets=None):
    return images, targets


def images_as_text(self, images: "list[Tensor]", targets=None):
    return images, targets


def sequence(self, images: Sequence[Tensor], *, flag=False):
    return images, flag


def tensor(self, x: Tensor, mask: Tensor | None = None):
    return x, mask


def only_tensor(self, x: Tensor):
    return x


def anything(self, *args, **kwargs):
    return args, kwargs


def keywords(self, *, ids, mask=None):
    return ids, mask


def batch(self, batch, training=False):
    return batch, training


def mapping(self, ids: dict[str, Tensor], flag=False):
    return ids, flag


def pair(self, pair: Pair, flag=False):
    return pair, flag


def assert_same(found, expected):
    """The same tensors in the same containers."""
    assert type(found) is type(expected)
    if isinstance(found, (tuple, list)):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
    elif isinstance(found, dict):
        assert_same(list(found.items()), list(expected.items()))
    else:
        assert found is expected


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (one, X, X),
        (one, "text", "text"),
        (one, [X, Y], [X, Y]),
        (one, [X], [X]),
        (one, (X, Y), (X, Y)),
        (one, (X,), (X,)),
        (one, Pair(X, Y), Pair(X, Y)),
        (two, (X, Y), (X, Y)),
        (two, [X, Y], (X, Y)),
        (two, Pair(X, Y), (X, Y)),
        (optional, X, (X, 0)),
        (optional, (X, Y), (X, Y)),
        (optional, (X,), (X, 0)),
        (images, [X, X], ([X, X], None)),
        (images, (X, X), ((X, X), None)),
        (images_as_text, [X], ([X], None)),
        (sequence, [X, Y], ([X, Y], False)),
        (tensor, [X, Y], (X, Y)),
        (tensor, (X, Y), (X, Y)),
        (only_tensor, (X,), X),
        (only_tensor, [X], X),
        (anything, (X, Y), ((X, Y), {})),
        (pair, Pair(X, Y), (Pair(X, Y), False)),
        (optional, {"b": Y, "a": X}, (X, Y)),
        (optional, UserDict(b=Y, a=X), (X, Y)),
        (keywords, {"ids": X}, (X, None)),
        (anything, {"ids": X}, ((), {"ids": X})),
        (one, {"x": X}, X),
        (one, {"ids": X, "mask": Y}, {"ids": X, "mask": Y}),
        (batch, {"ids": X, "mask": Y}, ({"ids": X, "mask": Y}, False)),
        (mapping, {"ids": X}, ({"ids": X}, False)),
    ],
)
def test_what_a_model_is_called_with(function, inputs, expected):
    assert_same(call_model(model_of(function), inputs), expected)
    wrapper = lambda *args, **kwargs: function(None, *args, **kwargs)  # noqa: E731
    assert_same(call_model(wrapper, inputs, model_of(function)), expected)


def test_a_list_is_refused_where_it_may_be_one_argument_or_several():
    for inputs in ([X, Y[:0]], [torch.tensor(1.0)] * 2, ["a", "b"]):
        with pytest.raises(DataError, match="a list of 2 elements, which may be one argument or"):
            call_model(model_of(optional), inputs)


def test_a_list_with_a_tensor_for_each_argument_is_several():
    for function in (optional, anything):
        assert_same(call_model(model_of(function), [X, Y]), call_model(model_of(function), (X, Y)))


def test_packed_sequences_and_objects_are_one_argument():
    @dataclass
    class Graph:
        x: Tensor

    packed, graph = pack_sequence([X, X]), Graph(X)
    for function in (one, optional, anything):
        for inputs in (packed, graph):
            args, kwargs = model_arguments(model_of(function), inputs)
            assert args[0] is inputs
            assert len(args) == 1
            assert kwargs == {}
    first, second = call_model(model_of(two), (packed, X))
    assert isinstance(first, PackedSequence)
    assert second is X


def test_a_wrapper_of_torch_is_called_as_what_it_wraps():
    class Wrapper(nn.Module):
        """Calls its module as torch's wrappers for several devices do."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs, **kwargs):
            return self.module(*inputs, **kwargs)

    inner = model_of(one)
    compiled = torch.compile(inner, backend="eager")
    for wrapper in (Wrapper(inner), compiled, Wrapper(compiled), Wrapper(Wrapper(inner))):
        assert signature_of(wrapper) == signature_of(inner)
        assert model_arguments(wrapper, [X, Y]) == (([X, Y],), {})
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 1))
    assert signature_of(averaged) == signature_of(nn.Linear(2, 1))


def test_a_forward_that_is_replaced_later_decides():
    model = model_of(two)
    assert model_arguments(model, [X, Y]) == ((X, Y), {})
    model.forward = lambda images: images
    assert model_arguments(model, [X, Y]) == (([X, Y],), {})


def test_code_without_a_signature_gets_several_arguments():
    def function(first, second):
        """Has no signature that can be read."""

    function.__signature__ = "of another kind"
    assert signature_of(function) == Signature()
    assert model_arguments(function, (X, Y)) == ((X, Y), {})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of(one), False),
        (model_of(images), True),
        (model_of(sequence), True),
        (model_of(optional), False),
        (model_of(two), False),
        (model_of(anything), False),
        (nn.Linear(2, 1), False),
        (nn.Sequential(nn.Linear(2, 1)), False),
        (nn.Sequential(model_of(images)), True),
    ],
)
def test_models_that_declare_a_list(model, expected):
    assert declares_one_list(model) is expected


class Unannotated(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def test_several_inputs_of_a_model_of_one_tensor_are_an_error():
    for inputs in ([X, Y], (X, Y)):
        with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
            call_model(nn.Linear(3, 1), inputs)


@pytest.mark.parametrize(
    ("inputs", "note"),
    [
        (
            [X, X],
            r"with one argument, a list of 2 elements: .* a pair \(inputs, targets\), and sev",
        ),
        ({"a": X}, "with one argument, a mapping with the keys 'a'"),
        (np.zeros((2, 3)), "the inputs are a NumPy array: make them a tensor"),
    ],
)
def test_an_error_of_a_model_says_how_it_was_called(inputs, note):
    with pytest.raises(TypeError) as caught:
        call_model(Unannotated(3, 1), inputs)
    (found,) = caught.value.__notes__
    assert re.search(note, found)
