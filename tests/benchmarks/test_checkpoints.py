"""A short form of the benchmark: it runs, and no ratio falls back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

TRIES = 4
# 1.25 times the targets, of the least of several tries: other load on the machine adds to a ratio.
LIMITS = {
    "background save, blocked / clone": 1.9,
    "background save, blocked / plain copy": 2.5,  # a tenth of a millisecond is 5 % of it
    "durable save / torch.save + fsync": 1.6,
    "load, verified / torch.load": 1.75,  # the target of 1.0 is not reached with 100 small tensors
    "best + last + periodic / one save": 1.4,
    "peak memory of a background save / state": 1.25,
    "a batch beside a background save / alone": 1.5,
    "save after 100,000 epochs, blocked / 1,000": 1.5,
    "save after 100,000 epochs, behind / 1,000": 3.0,  # a file of 0.1 MB and one of 4 MB
}


def measure(folder: Path) -> dict[str, float]:
    """The medians of a short run, in a process of its own, which sets its number of threads."""
    script = Path(__file__).with_name("checkpoints.py")
    command = [sys.executable, script, "--sizes", "10", "--rounds", "4", "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "the benchmark leaves nothing behind"
    return {
        name: float(re.search(rf"{re.escape(name)} +[-\d.]+ +[-\d.]+ +([-\d.]+)", done.stdout)[1])
        for name in LIMITS
    }


def test_no_ratio_falls_back(tmp_path):
    least = dict.fromkeys(LIMITS, float("inf"))
    for _ in range(TRIES):
        least = {name: min(least[name], found) for name, found in measure(tmp_path).items()}
        outside = {name: found for name, found in least.items() if found > LIMITS[name]}
        if not outside:
            return
    pytest.fail(f"{outside} are more than { ({name: LIMITS[name] for name in outside}) }")
