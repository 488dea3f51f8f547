"""States of optimizers and schedulers from a file: which are loaded, and which are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from fitkit import CheckpointError
from fitkit.checkpointing.format.class_names import class_name
from fitkit.handler.optimizer_state import (
    load_optimizer,
    load_scheduler,
    move_counters,
    require_class,
    require_loadable,
    state_of,
)

KINDS = [(SGD, {"momentum": 0.9}), (Adam, {}), (AdamW, {"amsgrad": True}), (NAdam, {})]


def make(cls=Adam, size=2, steps=1, **options):
    torch.manual_seed(0)
    module = nn.Linear(size, 3)
    optimizer = cls(module.parameters(), **{"lr": 0.1, **options})
    for _ in range(steps):
        step(module, optimizer)
    return module, optimizer


def step(module, optimizer):
    optimizer.zero_grad()
    module(torch.ones(1, module.in_features)).square().sum().backward()
    optimizer.step()


def state_like(optimizer):
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_a_loaded_optimizer_steps_as_the_saved_one(cls, options):
    module, optimizer = make(cls, **options)
    other_module, other = make(cls, steps=0, **options)
    other_module.load_state_dict(module.state_dict())
    saved = state_like(optimizer)
    require_loadable(other, saved)
    load_optimizer(other, saved)
    for one in ((module, optimizer), (other_module, other)):
        step(*one)
    assert torch.equal(module.weight, other_module.weight)


def test_flags_of_the_implementation_are_those_of_the_program():
    saved = make(foreach=True)[1].state_dict()
    _, other = make(steps=0, foreach=False, lr=5.0)
    load_optimizer(other, saved)
    assert other.param_groups[0]["foreach"] is False
    assert other.param_groups[0]["lr"] == 0.1


def test_nothing_to_load():
    _, optimizer = make(steps=0)
    for saved in (None, {}):
        load_optimizer(optimizer, saved)
    load_optimizer(None, make()[1].state_dict())
    assert not optimizer.state
    assert state_of(None) is None
    assert state_of(optimizer) == optimizer.state_dict()


def change_moment(state, value):
    state["state"][0]["exp_avg"] = value


REFUSED = {
    "groups": (lambda s: s.pop("param_groups"), "has no parameter groups"),
    "no list": (lambda s: s.update(param_groups=3), "has no parameter groups"),
    "number": (lambda s: s["param_groups"][0]["params"].pop(), r"of \[1\] parameters, .* \[2\]"),
    "shape": (lambda s: change_moment(s, torch.zeros(3, 1)), r"'exp_avg' .*\(3, 2\) has .*3, 1"),
    "kind": (lambda s: change_moment(s, "text"), "'exp_avg' of a parameter .* has 'text'"),
    "missing moment": (lambda s: s["state"][0].pop("exp_avg"), "not the same for all parameters"),
    "missing option": (lambda s: s["param_groups"][0].pop("betas"), "cannot be read: KeyError"),
    "option": (lambda s: s["param_groups"][0].update(lr="high"), "optimizer's lr of group 0"),
    "index": (lambda s: s["state"].update({7: s["state"].pop(0)}), "cannot be read: KeyError"),
    "state": (lambda s: s.update(state=[1]), "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused(case):
    change, sentence = REFUSED[case]
    saved = state_like(make()[1])
    change(saved)
    with pytest.raises(CheckpointError, match=sentence):
        require_loadable(make(steps=0)[1], saved)


def test_the_state_of_another_class_is_refused():
    with pytest.raises(CheckpointError, match=r"AdamW.*this handler has .*Adam'.*skip_optimizer"):
        require_class(make()[1], class_name(AdamW))
    for fitting in (class_name(Adam), None):
        require_class(make()[1], fitting)


def test_a_moment_per_parameter_is_not_checked_for_optimizers_of_others():
    class Mine(Adam):
        pass

    saved = state_like(make(Mine)[1])
    change_moment(saved, torch.zeros(7))
    require_loadable(make(Mine, steps=0)[1], saved)


def test_counters_move_and_moments_stay():
    state = {"step": torch.ones(()), "mu_product": torch.ones(()), "exp_avg": torch.ones(2)}
    move_counters(state, torch.device("meta"))
    assert [state[name].device.type for name in state] == ["meta", "meta", "cpu"]
    without = {"step": 3}
    move_counters(without, torch.device("meta"))
    assert without == {"step": 3}


def test_moments_agree_within_a_group_and_keys_of_its_own_are_an_optimizer_s():
    def in_groups(steps):
        module = nn.Linear(2, 3)
        bias = {"params": [module.bias], "amsgrad": True}
        optimizer = Adam([{"params": [module.weight]}, bias])
        for _ in range(steps):
            step(module, optimizer)
        return optimizer

    saved = state_like(in_groups(1))
    saved["state"]["whole"] = {"k": 3}
    other = in_groups(0)
    require_loadable(other, saved)
    load_optimizer(other, saved)
    assert other.state["whole"] == {"k": 3}
    assert "max_exp_avg_sq" in other.state[other.param_groups[1]["params"][0]]


def test_options_that_only_a_scheduler_sets_may_be_missing():
    _, other = make(steps=0)
    other.param_groups[0]["initial_lr"] = 0.5
    require_loadable(other, state_like(make()[1]))


class Own(StepLR):
    """A scheduler of the program's own."""


def test_a_scheduler_of_the_program_s_own_may_have_gained_attributes():
    scheduler = Own(make()[1], 9)
    saved = {**scheduler.state_dict(), "highest": 0.5}
    load_scheduler(scheduler, saved)
    assert scheduler.highest == 0.5
    for key in ("step", "optimizer"):
        with pytest.raises(CheckpointError, match=f"has '{key}', which a Own does not have"):
            load_scheduler(scheduler, {**saved, key: 3})


def test_a_scheduler_takes_its_own_keys_only():
    _, optimizer = make()
    saved = {**StepLR(optimizer, 3).state_dict(), "last_epoch": 4}
    scheduler = StepLR(make()[1], 9)
    load_scheduler(scheduler, saved)
    assert (scheduler.last_epoch, scheduler.step_size) == (4, 3)
    with pytest.raises(CheckpointError, match=r"has 'step_size', which a LambdaLR does not have"):
        load_scheduler(LambdaLR(optimizer, lambda epoch: 1.0), saved)
    with pytest.raises(CheckpointError, match=r"the scheduler's state\['last_epoch'\] in the"):
        load_scheduler(scheduler, {"last_epoch": "four"})
    assert scheduler.last_epoch == 4


OF_ANOTHER_RELEASE = {"_kept_by_another_release": [1, {"a": 2}], "verbose": False}


def in_turn(optimizer):
    parts = [StepLR(optimizer, 2), CosineAnnealingLR(optimizer, 5)]
    return SequentialLR(optimizer, parts, milestones=[2])


def at_once(optimizer):
    return ChainedScheduler([StepLR(optimizer, 2), StepLR(optimizer, 3)])


@pytest.mark.parametrize(
    "build",
    [lambda o: StepLR(o, 2), lambda o: ReduceLROnPlateau(o, patience=1), in_turn, at_once],
    ids=["step", "plateau", "sequential", "chained"],
)
@pytest.mark.filterwarnings("ignore:.*call of `lr_scheduler.step", "ignore:The epoch parameter")
def test_the_state_of_another_release_of_torch_is_loaded(build):
    """Also inside composed schedulers: unknown private keys are dropped, missing ones stay new."""
    expected, other = build(make()[1]), build(make()[1])
    for _ in range(3):
        expected.step(*([1.0] if isinstance(expected, ReduceLROnPlateau) else []))
    saved = copy.deepcopy(expected.state_dict())
    for state in [saved, *saved.get("_schedulers", ())]:
        state |= OF_ANOTHER_RELEASE
        state.pop("_get_lr_called_within_step", None)
        state.pop("_is_initial", None)
    load_scheduler(other, saved)
    assert other.state_dict() == expected.state_dict()
    for one in [other, *getattr(other, "_schedulers", ())]:
        assert not hasattr(one, "_kept_by_another_release")


@pytest.mark.parametrize("key", ["step", "optimizer", "gama"])
def test_keys_of_schedulers_inside_others_are_checked(key):
    scheduler = in_turn(make()[1])
    saved = copy.deepcopy(scheduler.state_dict())
    saved["_schedulers"][1][key] = 3
    with pytest.raises(CheckpointError, match=f"has '{key}', which a CosineAnnealingLR does not"):
        load_scheduler(in_turn(make()[1]), saved)
    del saved["_schedulers"][1]
    with pytest.raises(CheckpointError, match="of 1 schedulers, a SequentialLR here has 2"):
        load_scheduler(in_turn(make()[1]), saved)


def test_a_method_of_a_scheduler_of_the_program_s_own_is_not_replaced():
    class Private(StepLR):
        def _helper(self):
            return 1

    scheduler = Private(make()[1], 9)
    load_scheduler(scheduler, {**scheduler.state_dict(), "_helper": 3, "_mine": 4})
    assert (scheduler._helper(), scheduler._mine) == (1, 4)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, NAdam])
def test_the_state_of_an_optimizer_of_another_release_is_loaded(kind):
    """Releases of torch add options that are off or on, and private values."""
    module, optimizer = make(kind)
    expected = copy.deepcopy(optimizer.state_dict())
    saved = state_like(optimizer)
    for group in saved["param_groups"]:
        group |= {"_private": {"a": 1}, "new_switch": True}
        for switch in ("maximize", "decoupled_weight_decay", "capturable", "amsgrad", "nesterov"):
            group.pop(switch, None)
    for values in saved["state"].values():
        values |= {"_private": torch.ones(7), "_count": "text"}
    other_module, other = make(kind, steps=0)
    require_loadable(other, saved)
    load_optimizer(other, saved)
    for group, before in zip(other.param_groups, expected["param_groups"], strict=True):
        assert {key: group[key] for key in before if key != "params"} == {
            key: value for key, value in before.items() if key != "params"
        }
    other_module.load_state_dict(module.state_dict())
    for one, two in ((module, optimizer), (other_module, other)):
        step(one, two)
    assert all(map(torch.equal, module.parameters(), other_module.parameters()))
