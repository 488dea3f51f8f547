import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fitkit.core.argument_checks import (
    as_whole_number,
    require_count,
    require_number,
    require_on_error,
    require_path,
)
from fitkit.core.errors import ConfigurationError


@pytest.mark.parametrize("value", [0, -1, 1.5, 10**30])
def test_numbers_pass(value):
    require_number("x", value)


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, 1j])
def test_other_things_are_no_numbers(value):
    with pytest.raises(ConfigurationError, match="x must be a finite number, received"):
        require_number("x", value)


@pytest.mark.parametrize(("value", "minimum"), [(1, 1), (0, 0), (5, 2), (-1, -1)])
def test_counts_pass(value, minimum):
    require_count("n", value, minimum=minimum)


@pytest.mark.parametrize(
    ("value", "minimum"), [(0, 1), (-1, 0), (1.0, 1), (True, 1), ("1", 1), (None, 1)]
)
def test_other_things_are_no_counts(value, minimum):
    with pytest.raises(
        ConfigurationError, match=f"n must be a whole number of at least {minimum}, received"
    ):
        require_count("n", value, minimum=minimum)


def test_none_passes_where_optional():
    require_count("n", None, optional=True)
    with pytest.raises(ConfigurationError, match="at least 1 or None, received 0"):
        require_count("n", 0, optional=True)


def test_the_minimum_of_a_number():
    require_number("x", 0, minimum=0)
    with pytest.raises(ConfigurationError, match=r"x must be at least 0\.5, received 0\.4"):
        require_number("x", 0.4, minimum=0.5)


@pytest.mark.parametrize("value", [None, "", 3, b"a"])
def test_other_things_are_no_paths(value):
    require_path("p", "a")
    require_path("p", Path("a"))
    with pytest.raises(ConfigurationError, match="p must be a path, received"):
        require_path("p", value)


@pytest.mark.parametrize("value", [None, True, "", "Raise", "ignore"])
def test_what_a_failed_write_means(value):
    require_on_error("raise")
    require_on_error("warn")
    with pytest.raises(ConfigurationError, match="must be 'raise' or 'warn', received"):
        require_on_error(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (0, 0),
        (torch.tensor([3]), 3),
        (np.int64(3), 3),
        (-1, None),
        (2.0, None),
        (torch.tensor(2.5), None),
        (torch.ones(2), None),
        ("3", None),
        (None, None),
    ],
)
def test_whole_numbers(value, number):
    found = as_whole_number(value)
    assert found == number
    assert type(found) in (int, type(None))
