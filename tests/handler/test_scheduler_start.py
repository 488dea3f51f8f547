"""A schedule that begins again and is brought to a step."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from fitkit import ConfigurationError
from fitkit.handler.group_options import options_of
from fitkit.handler.scheduler_start import SchedulerStart, are_schedulers_of, has_schedulers


def optimizer():
    return SGD([nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.9)


def test_steps_are_those_of_a_run_that_had_the_schedule_all_along():
    first, second = optimizer(), optimizer()
    whole = lr_scheduler.OneCycleLR(first, max_lr=1.0, total_steps=9)
    again = lr_scheduler.OneCycleLR(second, max_lr=1.0, total_steps=9)
    start = SchedulerStart.of(again, second)
    for _ in range(7):
        second.step()
        again.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start.step(again, second, 4)
    for _ in range(4):
        first.step()
        whole.step()
    assert options_of(first) == options_of(second)
    assert whole.state_dict() == again.state_dict()


def test_a_schedule_that_is_too_short_is_named():
    one = optimizer()
    scheduler = lr_scheduler.OneCycleLR(one, max_lr=1.0, total_steps=3)
    start = SchedulerStart.of(scheduler, one)
    with pytest.raises(ConfigurationError, match=r"OneCycleLR cannot be .*step 5, .*only to 3"):
        start.step(scheduler, one, 5)


def test_a_state_that_cannot_be_stored_is_left_out():
    class Odd(lr_scheduler.ConstantLR):
        made_of = None

    one = optimizer()
    scheduler = Odd(one)
    scheduler.made_of = object()
    assert SchedulerStart.of(scheduler, one).state is None


def test_a_hundred_thousand_steps_are_quick():
    one = optimizer()
    scheduler = lr_scheduler.CosineAnnealingLR(one, T_max=200_000)
    start = SchedulerStart.of(scheduler, one)
    before = time.process_time()
    start.step(scheduler, one, 100_000)
    assert time.process_time() - before < 5.0
    assert scheduler.last_epoch == 100_000


def test_schedulers_among_arguments():
    one, other = optimizer(), optimizer()
    inner = [lr_scheduler.ConstantLR(one), lr_scheduler.ConstantLR(one)]
    assert has_schedulers({"schedulers": inner})
    assert not has_schedulers({"milestones": [1, 2]})
    assert are_schedulers_of(one, {"schedulers": inner})
    assert not are_schedulers_of(other, {"schedulers": inner})
    assert are_schedulers_of(other, {"milestones": [1]})
