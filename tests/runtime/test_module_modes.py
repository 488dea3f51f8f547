"""Modes are switched as ``eval()`` does, whatever modules do in it, and put back one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit.runtime.module_modes import ModuleModes


class Frozen(nn.BatchNorm1d):
    """A normalization that never trains."""

    def train(self, mode=True):
        return super().train(False)


class Counting(nn.Linear):
    """Counts the calls of ``eval``."""

    calls = 0

    def eval(self):
        self.calls += 1
        return super().eval()


class StubbornMode(nn.Module):
    """Refuses to be changed without its own method, as a module of TorchScript does."""

    def __setattr__(self, name, value):
        if name == "training":
            value = ("set", value)
        super().__setattr__(name, value)


def modes_of(module):
    return [part.training for part in module.modules()]


nested = st.recursive(
    st.builds(lambda mode: nn.Identity().train(mode), st.booleans()),
    lambda parts: st.builds(
        lambda children, mode: _with_mode(nn.Sequential(*children), mode),
        st.lists(parts, max_size=4),
        st.booleans(),
    ),
    max_leaves=12,
)


def _with_mode(module, mode):
    module.training = mode
    return module


@given(nested, nested)
def test_it_does_what_eval_does_and_puts_all_modes_back(first, second):
    before = modes_of(first), modes_of(second)
    modes = ModuleModes((first, second))
    assert set(modes.modules) == {*first.modules(), *second.modules()}
    assert len(modes.modules) == len(set(modes.modules))
    modes.evaluate()
    assert not any(modes_of(first) + modes_of(second))
    first.train()
    modes.restore()
    assert (modes_of(first), modes_of(second)) == before


def test_parts_that_are_shared_or_contain_themselves_are_found_once():
    shared = nn.Linear(1, 1)
    model = nn.Sequential(shared, nn.Sequential(shared), shared)
    shared.owner = model
    shared.nothing = None
    shared.register_module("none", None)
    modes = ModuleModes((model, model))
    assert modes.modules == [model, shared, model[1]]


def test_a_deep_nesting_of_shared_parts_takes_no_time():
    model = nn.Identity()
    for _ in range(60):
        model = nn.Sequential(model, model)
    assert len(ModuleModes((model,)).modules) == 61


@pytest.mark.parametrize("where", ["root", "inside"])
def test_overridden_methods_are_called(where):
    frozen, counting = Frozen(2), Counting(2, 2)
    assert frozen.training, "torch's constructor sets it"
    model = counting if where == "root" else nn.Sequential(frozen, nn.Linear(2, 2))
    modes = ModuleModes((model,))
    modes.evaluate()
    assert not any(modes_of(model))
    assert counting.calls == (1 if where == "root" else 0)
    modes.restore()
    assert all(modes_of(model))


def test_a_method_of_the_instance_is_called():
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    model[0].train = lambda mode=True: model[0]  # a dropout that stays on, for its samples
    modes = ModuleModes((model,))
    modes.evaluate()
    assert modes_of(model) == [False, True, False]
    modes.restore()
    assert modes_of(model) == [True, True, True]


def test_a_module_that_watches_its_attributes_sees_the_change():
    model = nn.Sequential(StubbornMode())
    ModuleModes((model,)).evaluate()
    assert model[0].training == ("set", False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_module_of_torchscript_is_switched():
    model = torch.jit.script(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
    modes = ModuleModes((model,))
    modes.evaluate()
    assert not any(modes_of(model))
    inputs = torch.ones(64, 2)
    assert torch.equal(model(inputs), model(inputs)), "its code reads the mode too"
    modes.restore()
    assert all(modes_of(model))


def test_a_replaced_method_of_all_modules_is_called(monkeypatch):
    calls, own = [], nn.Module.train

    def train(self, mode=True):
        calls.append(self)
        return own(self, mode)

    monkeypatch.setattr(nn.Module, "train", train)
    ModuleModes((nn.Linear(1, 1),)).evaluate()
    assert calls
