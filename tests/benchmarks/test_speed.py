"""A short form of the benchmark: no ratio is far outside; times are not compared with numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

FAR_OUTSIDE = 1.15  # of the plain loop, for a user's own DataLoader with nothing attached
TRIES = 4
OWN = "fitkit, own DataLoader"


def measure(folder: Path) -> dict:
    """The figures of a short run, in a process of its own, which sets its number of threads."""
    script, figures = Path(__file__).with_name("speed.py"), folder / "figures.json"
    command = [sys.executable, script, "--short", "--only", "table", "--no-peers"]
    done = subprocess.run(
        [*command, "--repeats", "2", "--json", figures], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text())["tables"]["mlp"]


def test_a_step_costs_about_what_it_costs_by_hand_and_gives_the_same_loss(tmp_path):
    least = float("inf")
    for _ in range(TRIES):  # what else the machine does can only add to a ratio's least value
        arms = measure(tmp_path)
        for arm in arms.values():
            assert arm["loss"] == arms[arm["reference"]]["loss"], arm["name"]
        least = min(least, *arms[OWN]["cpu"])
        if least <= FAR_OUTSIDE:
            return
    pytest.fail(f"a step takes {least:.2f} times that of the plain loop, {FAR_OUTSIDE} at most")
