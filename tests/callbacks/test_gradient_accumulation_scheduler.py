import pytest

from fitkit.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from fitkit.core.errors import ConfigurationError


def test_the_number_changes_at_the_epochs_named(drive):
    driver = drive(GradientAccumulationScheduler({3: 2, 1: 4}))
    driver.begin()
    seen = []
    for _ in range(5):
        driver.epoch({})
        seen.append(driver.handler.gradient_accumulation_steps)
    assert seen == [1, 4, 4, 2, 2]


def test_a_resume_inside_an_epoch_has_its_number(drive):
    first = drive(GradientAccumulationScheduler({1: 4})).fit([1.0, 1.0])
    callback = GradientAccumulationScheduler({1: 4})
    assert callback.state_dict() == {}
    assert first.resume(callback).handler.gradient_accumulation_steps == 4


def test_the_callers_dict_is_copied():
    scheduling = {0: 2}
    callback = GradientAccumulationScheduler(scheduling)
    scheduling[0] = 9
    assert callback.factor(0) == 2


@pytest.mark.parametrize("scheduling", [{}, None, [1], {-1: 2}, {0: 0}, {0: 1.5}, {"0": 2}])
def test_bad_arguments(scheduling):
    with pytest.raises(ConfigurationError, match="received"):
        GradientAccumulationScheduler(scheduling)
