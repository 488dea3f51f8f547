"""A program that is killed again and again, and started again, ends as if it had not been."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover

HARNESS = Path(__file__).parent / "scripts" / "kill_harness.py"


def kill(*arguments):
    # coverage in a process that traces and kills itself measures nothing and takes minutes
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, str(HARNESS), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("kills", "workers"),
    [("4", "0"), *(pytest.param("5", count, marks=pytest.mark.slow) for count in ("0", "2"))],
)
def test_killed_again_and_again_it_ends_exactly(kills, workers):
    assert "all exact" in kill("--kills", kills, "--workers", workers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_hundred_kills_a_hundred_exact_endings(seed):
    assert "all exact" in kill("--kills", "100", "--seed", seed)
