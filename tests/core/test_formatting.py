import math

import pytest

from fitkit.core.formatting import (
    format_age,
    format_bytes,
    format_epoch,
    format_logs,
    format_seconds,
    format_value,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (-0.5, "-0.5000"),
        (1e-3, "0.0010"),
        (9.9e-4, "9.900e-04"),
        (1234.56, "1234.6"),
        (1e6, "1.000e+06"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_values(value, text):
    assert format_value(value) == text


def test_logs_epochs_and_times():
    assert format_logs({}) == ""
    assert format_epoch(0, 1) == "Epoch 1/1"
    assert [format_seconds(seconds) for seconds in (0, 59.94, 60, 90061)] == [
        "0.0 s",
        "59.9 s",
        "0:01:00",
        "1 day, 1:01:01",
    ]


def test_sizes():
    sizes = [0, 1023, 1024, 2_500_000, 3 << 30, 5 << 50]
    assert [format_bytes(size) for size in sizes] == [
        "0 B", "1023 B", "1.0 KiB", "2.4 MiB", "3.0 GiB", "5120.0 TiB",
    ]  # fmt: skip


def test_ages():
    ages = [-1.0, 59.4, 60, 5400, 3 * 86400]
    assert [format_age(seconds) for seconds in ages] == ["0 s", "59 s", "1 min", "2 h", "3 d"]
