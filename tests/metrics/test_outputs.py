"""What metrics get has no graph, in whatever the model returns it."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fitkit.metrics.outputs import detach, main_output

Pair = namedtuple("Pair", ["a", "b"])


@dataclass(frozen=True)
class Result:
    logits: torch.Tensor
    name: str = "result"


class Named(OrderedDict):
    """As the ``ModelOutput`` of transformers."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Nested:
    def __init__(self, value):
        self.parts = {"all": [value]}


def weight():
    return torch.ones(2, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda t: t, lambda o: o),
        (lambda t: {"a": [t]}, lambda o: o["a"][0]),
        (lambda t: Pair(t, None), lambda o: o.a),
        (lambda t: Named(logits=t), lambda o: o.logits),
        (Result, lambda o: o.logits),
        (Nested, lambda o: o.parts["all"][0]),
        (lambda t: torch.distributions.Normal(t, t.exp()), lambda o: o.loc),
        (lambda t: Nested(Result(t)), lambda o: o.parts["all"][0].logits),
        (lambda t: Nested(pack_sequence([t])), lambda o: o.parts["all"][0].data),
        (lambda t: pack_sequence([t]), lambda o: o.data),
    ],
)
def test_a_graph_is_taken_from_outputs(make, read):
    given = make(weight())
    found = detach(given)
    assert type(found) is type(given)
    assert not read(found).requires_grad
    assert read(given).requires_grad  # the loss has still to go backward
    assert torch.equal(read(found), read(given))
    assert read(found).data_ptr() == read(given).data_ptr()


@pytest.mark.parametrize("leaf", [None, 3, "text", nn.Linear(1, 1), Nested(torch.ones(1)), len])
def test_what_has_no_graph_stays_the_same_object(leaf):
    assert detach([leaf])[0] is leaf


def test_the_main_output_of_a_model_output():
    named = Named(loss=1, logits=2)
    assert main_output(named) == 2
    for other in (torch.ones(1), {"logits": 1}, (1, 2), Named(hidden=1)):
        assert main_output(other) is other
