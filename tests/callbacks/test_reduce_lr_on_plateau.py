import math

import pytest
import torch

from fitkit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from fitkit.core.errors import ConfigurationError, MonitorError


def rates(drive, values, **arguments):
    """The learning rate after each epoch."""
    driver = drive(ReduceLROnPlateau(**{"factor": 0.5, "min_delta": 0.0, **arguments}))
    driver.begin()
    found = []
    for value in values:
        driver.epoch(value if isinstance(value, dict) else {"loss": 1.0, "val_loss": value})
        found.append(driver.handler.lr)
    return found


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({"patience": 1}, [2, 2, 2], [1, 0.5, 0.25]),
        ({"patience": 0}, [2, 2, 2], [1, 0.5, 0.25]),
        ({"patience": 2}, [2, 2, 1, 1, 1], [1, 1, 1, 1, 0.5]),
        # Keras counts the cooldown down before it looks, so a cooldown of 2 spares one check
        ({"patience": 1, "cooldown": 2}, [2, 2, 2, 2, 2], [1, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 1, "min_lr": 0.4}, [2, 2, 2, 2], [1, 0.5, 0.4, 0.4]),
        ({"patience": 1, "min_delta": 0.5}, [2, 1.5, 0.9], [1, 0.5, 0.5]),
        ({"patience": 1, "mode": "max"}, [1, 2, 2], [1, 1, 0.5]),
        ({"patience": 1}, [2, math.nan, 1], [1, 0.5, 0.5]),
        ({"patience": 1}, [2, {"loss": 1.0}, 1], [1, 1, 1]),
    ],
)
def test_learning_rates(drive, arguments, values, expected):
    assert rates(drive, values, **arguments) == expected


def test_every_group_is_reduced_from_its_own_rate(drive):
    driver = drive(ReduceLROnPlateau(factor=0.1, patience=1, min_lr=0.5))
    other = torch.nn.Parameter(torch.zeros(1))
    driver.handler.optimizer.add_param_group({"params": [other], "lr": 20.0})
    driver.fit([1.0, 1.0])
    assert [group["lr"] for group in driver.handler.optimizer.param_groups] == [0.5, 2.0]


def test_a_rate_that_is_a_tensor_stays_one(drive):
    driver = drive(ReduceLROnPlateau(factor=0.5, patience=1))
    rate = torch.tensor(1.0)
    driver.handler.optimizer.param_groups[0]["lr"] = rate
    driver.fit([1.0, 1.0])
    assert driver.handler.lr is rate
    assert rate.item() == 0.5


def test_verbose_logs_each_reduction(drive):
    driver = drive(ReduceLROnPlateau(factor=0.5, patience=1, verbose=1)).fit([1.0, 1.0])
    assert driver.handler.lines == [
        "epoch 2: ReduceLROnPlateau reduces the learning rate from 1 to 0.5"
    ]


def test_progress_survives_a_resume(drive):
    first = drive(ReduceLROnPlateau(factor=0.5, patience=3, cooldown=2)).fit([1.0, 2.0, 2.0])
    callback = ReduceLROnPlateau(factor=0.5, patience=3, cooldown=2)
    second = first.resume(callback)
    assert (callback.best, callback.wait) == (1.0, 2)
    second.epoch({"val_loss": 2.0})
    assert (second.handler.lr, callback.cooldown_counter) == (0.5, 2)
    again = ReduceLROnPlateau(factor=0.5, patience=3, cooldown=2)
    second.resume(again)
    assert again.cooldown_counter == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": 1.0},
        {"factor": 0},
        {"factor": "half"},
        {"patience": -1},
        {"cooldown": -1},
        {"min_lr": -0.1},
        {"monitor": "thing"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ConfigurationError, match=r"received|mode="):
        ReduceLROnPlateau(**arguments)


def test_it_needs_an_optimizer_and_a_value_that_can_appear(drive):
    driver = drive(ReduceLROnPlateau())
    with pytest.raises(MonitorError, match="no validation"):
        driver.begin(validation=False)
    driver.handler.optimizer = None
    with pytest.raises(ConfigurationError, match="set_optimizer"):
        driver.begin()
