import math

import pytest
import torch

from fitkit.callbacks.learning_rate_scheduler import LearningRateScheduler
from fitkit.core.errors import ConfigurationError


def test_a_function_of_the_epoch(drive):
    driver = drive(LearningRateScheduler(lambda epoch: 1 / (epoch + 2)))
    driver.begin()
    seen = []
    for _ in range(3):
        driver.epoch({})
        seen.append(driver.handler.lr)
    assert seen == [1 / 2, 1 / 3, 1 / 4]


def test_a_function_of_epoch_and_rate(drive):
    driver = drive(LearningRateScheduler(lambda epoch, lr: lr if epoch == 0 else lr * 0.5))
    driver.fit([1.0, 1.0, 1.0])
    assert driver.handler.lr == 0.25


def test_the_signature_decides_and_errors_of_the_schedule_are_its_own(drive):
    calls = []

    def schedule(epoch, lr):
        calls.append((epoch, lr))
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        drive(LearningRateScheduler(schedule)).fit([1.0])
    assert calls == [(0, 1.0)]


def test_each_group_has_its_own_rate(drive):
    driver = drive(LearningRateScheduler(lambda epoch, lr: lr / 2))
    driver.handler.optimizer.add_param_group(
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": torch.tensor(4.0)}
    )
    driver.fit([1.0])
    assert [float(group["lr"]) for group in driver.handler.optimizer.param_groups] == [0.5, 2.0]


def test_verbose(drive):
    driver = drive(LearningRateScheduler(lambda epoch: 0.125, verbose=1)).fit([1.0])
    assert driver.handler.lines == [
        "epoch 1: LearningRateScheduler sets the learning rate to 0.125"
    ]


@pytest.mark.parametrize("schedule", [None, 0.1, lambda: 0.1, lambda epoch, lr, more: 0.1, dict])
def test_a_schedule_that_cannot_be_called(schedule):
    with pytest.raises(ConfigurationError, match="schedule must"):
        LearningRateScheduler(schedule)


@pytest.mark.parametrize("returned", [math.nan, -0.1, "0.1", None])
def test_a_rate_that_is_none(drive, returned):
    with pytest.raises(ConfigurationError, match="received"):
        drive(LearningRateScheduler(lambda epoch: returned)).fit([1.0])


@pytest.mark.parametrize("returned", [torch.tensor(0.5), 1])
def test_numbers_of_other_kinds(drive, returned):
    driver = drive(LearningRateScheduler(lambda epoch: returned)).fit([1.0])
    assert driver.handler.lr == float(returned)
    assert type(driver.handler.lr) is float


def test_it_needs_an_optimizer(drive):
    driver = drive(LearningRateScheduler(lambda epoch: 0.1))
    driver.handler.optimizer = None
    with pytest.raises(ConfigurationError, match="set_optimizer"):
        driver.begin()
