"""A short form of the benchmark: it runs, and no ratio is far outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Three times the targets and more: this is about mistakes, not about a busy machine.
FAR_OUTSIDE = {
    "background save, blocked / plain copy": 30.0,
    "durable save / torch.save + fsync": 4.0,
    "load, verified / torch.load": 6.0,
    "best + last + periodic / one save": 3.0,
    "peak memory of a background save / state": 2.0,
}


@pytest.mark.slow
def test_no_ratio_is_far_outside(tmp_path):
    script = Path(__file__).with_name("checkpoints.py")
    command = [sys.executable, script, "--sizes", "20", "--rounds", "2", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    medians = {
        name: float(re.search(rf"{re.escape(name)} +[\d.]+ +[-\d.]+ +([-\d.]+)", done.stdout)[1])
        for name in FAR_OUTSIDE
    }
    outside = {name: found for name, found in medians.items() if found > FAR_OUTSIDE[name]}
    assert not outside
    assert not list(tmp_path.iterdir()), "the benchmark leaves nothing behind"
