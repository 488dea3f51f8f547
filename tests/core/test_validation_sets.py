"""Names of validation sets in the logs and in checkpoints."""

from __future__ import annotations

import pytest

from fitkit import ConfigurationError
from fitkit.core.validation_sets import (
    log_prefix,
    logged_names,
    named_values,
    pass_name,
    require_distinct_names,
    sets_of,
)


def test_a_set_without_a_name_logs_as_the_only_one():
    assert (log_prefix(""), pass_name("")) == ("val_", "validation")
    assert (log_prefix("a b"), pass_name("a b")) == ("val_a b_", "validation a b")


def test_names_are_in_the_order_of_the_sets():
    assert logged_names(["b", ""], ["loss", "accuracy"]) == [
        "val_b_loss",
        "val_b_accuracy",
        "val_loss",
        "val_accuracy",
    ]


@pytest.mark.parametrize(
    ("sets", "values", "name"),
    [
        (["a", "a_b"], ["loss", "b_loss"], "val_a_b_loss"),
        (["", "clean"], ["loss", "clean_loss"], "val_clean_loss"),
    ],
)
def test_two_values_of_one_name_are_refused(sets, values, name):
    with pytest.raises(ConfigurationError, match=rf"would log '{name}'"):
        require_distinct_names(sets, values)
    require_distinct_names(sets, ["loss"])


def test_values_take_the_name_of_their_set():
    assert named_values("val_a_", {"loss": 1.0}, ["loss", "a_loss"]) == {"val_a_loss": 1.0}
    with pytest.raises(ConfigurationError, match="logs 'val_a_loss', which is logged already"):
        named_values("val_a_", {"loss": 1.0}, ["val_a_loss"])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, []),
        ({"validation": False}, []),
        ({"validation": True}, [""]),
        ({"validation": True, "validation_sets": {"a": 3, "b": None}}, ["a", "b"]),
    ],
)
def test_the_sets_of_a_call(params, expected):
    assert sets_of(params) == expected
