"""The protocol of samplers: which objects ``set_sampler`` takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import ConfigurationError, NNHandler
from fitkit.generative import Sampler

METHODS = {
    "sample": lambda self, n, device: torch.zeros(n, 2, device=device),
    "state_dict": lambda self: {},
    "load_state_dict": lambda self, state_dict: None,
}


def make(*names):
    return type("Drawer", (), {name: METHODS[name] for name in names})()


@pytest.fixture
def handler():
    return NNHandler(nn.Linear(1, 1), "cpu", seed=0)


def test_any_class_with_the_methods_is_a_sampler(handler):
    sampler = make(*METHODS)
    assert isinstance(sampler, Sampler)
    handler.set_sampler(sampler)
    assert handler.get_samples(3).shape == (3, 2)


@pytest.mark.parametrize("missing", METHODS)
def test_each_method_is_needed(handler, missing):
    sampler = make(*(name for name in METHODS if name != missing))
    assert not isinstance(sampler, Sampler)
    with pytest.raises(ConfigurationError, match=r"a sampler needs the methods.*Drawer"):
        handler.set_sampler(sampler)


def test_a_module_is_a_sampler_with_the_state_of_its_weights(handler):
    class Learned(nn.Linear):
        def sample(self, n, device):
            return self(torch.ones(n, 1, device=device)).detach()

    sampler = Learned(1, 1)
    assert isinstance(sampler, Sampler)
    assert not isinstance(nn.Linear(1, 1), Sampler)
    handler.set_sampler(sampler)
    assert torch.equal(handler.get_samples(1)[0], (sampler.weight[0] + sampler.bias).detach())
