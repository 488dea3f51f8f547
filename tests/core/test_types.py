import pytest
import torch

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import LoggingMode, ModelType, Stateful, StepOutput


@pytest.mark.parametrize("value", ["regression", "Regression", "REGRESSION", ModelType.REGRESSION])
def test_a_choice_is_parsed_from_member_or_value(value):
    assert ModelType.parse(value) is ModelType.REGRESSION


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("regresion", "Did you mean 'regression'"),
        ("zzz", "received 'zzz'"),
        (None, "received None"),
        (LoggingMode.FILE, "received <LoggingMode.FILE"),
        (["console"], "received"),
    ],
)
def test_another_value_is_an_error_that_lists_the_choices(value, hint):
    with pytest.raises(ConfigurationError, match=f"ModelType: expected one of 'classif.*{hint}"):
        ModelType.parse(value)


def test_stateful_is_seen_by_its_methods():
    assert isinstance(torch.nn.Linear(1, 1), Stateful)
    assert not isinstance([], Stateful)


def test_step_outputs_share_no_logs():
    one, two = StepOutput(torch.tensor(0.0)), StepOutput(torch.tensor(0.0))
    assert one.logs is not two.logs
