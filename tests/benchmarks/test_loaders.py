"""A short form of the benchmark: no kind of data is far slower than by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

FAR_OUTSIDE = 1.25  # of the loop by hand over the same kind of data
# each sample has states of two generators of its own, where an item takes a few microseconds
FAR_OUTSIDE_OF = {"items that draw from random and NumPy": 1.5}
TRIES = 4
NUM_KINDS = 17


def measure(folder: Path, kinds: list[str]) -> dict:
    """The figures of a short run, in a process of its own, which sets its number of threads."""
    script, figures = Path(__file__).with_name("loaders.py"), folder / "figures.json"
    command = [sys.executable, script, "--short", "--only", ";".join(kinds), "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text())["step"]


def test_no_kind_of_data_is_far_slower_than_by_hand(tmp_path):
    least: dict[str, float] = {}
    left: list[str] = []
    for _ in range(TRIES):  # what else the machine does can only add to a ratio's least value
        for name, figures in measure(tmp_path, left).items():
            least[name] = min([least.get(name, float("inf")), *figures["cpu"]])
            by_hand, own = figures["figures"]
            assert own == by_hand or "draw" in name, name
        assert len(least) == NUM_KINDS
        left = [name for name, one in least.items() if one > _bound(name)]
        if not left:
            return
    found = {name: round(least[name], 2) for name in left}
    pytest.fail(f"a step takes {found} times that by hand")


def _bound(name: str) -> float:
    return FAR_OUTSIDE_OF.get(name, FAR_OUTSIDE)
