import pytest
import torch

from fitkit.callbacks.history import History
from fitkit.callbacks.learning_rate_monitor import LearningRateMonitor
from fitkit.callbacks.learning_rate_scheduler import LearningRateScheduler
from fitkit.core.errors import ConfigurationError


@pytest.mark.parametrize("monitor_first", [True, False])
def test_every_group_as_it_was_trained_with_whatever_the_order(drive, monitor_first):
    pair = [LearningRateMonitor(), LearningRateScheduler(lambda epoch, lr: lr / 2)]
    driver = drive(history := History(), *(pair if monitor_first else reversed(pair)))
    extra = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 8.0}
    driver.handler.optimizer.add_param_group(extra)
    driver.fit([1.0, 1.0])
    assert history.history["lr_0"] == [0.5, 0.25]
    assert history.history["lr_1"] == [4.0, 2.0]


def test_momentum_or_first_beta(drive):
    driver = drive(history := History(), LearningRateMonitor(log_momentum=True))
    driver.fit([1.0])
    driver.handler.optimizer = torch.optim.AdamW(driver.handler.module.parameters(), lr=0.5)
    driver.fit([1.0])
    driver.handler.optimizer = torch.optim.Adagrad(driver.handler.module.parameters(), lr=0.5)
    driver.fit([1.0])
    assert history.history["momentum_0"][:2] == [0.5, 0.9]
    assert driver.handler.logged == {"lr_0": 0.5}


def test_a_rate_that_is_a_tensor_is_what_it_was_then(drive):
    driver = drive(LearningRateMonitor())
    rate = torch.tensor(1.0)
    driver.handler.optimizer.param_groups[0]["lr"] = rate
    driver.fit([1.0])
    rate.fill_(2.0)
    assert driver.handler.logged["lr_0"] == 1.0


def test_it_needs_an_optimizer(drive):
    driver = drive(LearningRateMonitor())
    driver.handler.optimizer = None
    with pytest.raises(ConfigurationError, match="set_optimizer"):
        driver.begin()
