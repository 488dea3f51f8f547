"""The table for a device runs, here on the CPU, and gives the weights of the loop by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def table_of(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=500, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if " | " in line]
    return {(how, what): (shown, weights) for _, how, what, shown, weights in rows[1:]}


def test_an_eager_step_gives_the_same_weights():
    script = ROOT / "tests" / "benchmarks" / "devices.py"
    rows = table_of(script, "--device", "cpu", "--short", "--eager")
    assert rows.keys() == {
        ("eager", what) for what in ("us by hand", "fitkit", "fitkit, bar, loss and accuracy")
    }
    assert {weights for _, weights in rows.values()} == {"equal"}


def test_the_script_for_a_device_offers_it():
    script = ROOT / "tests" / "scripts" / "on_cuda.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert "--table" in done.stdout
