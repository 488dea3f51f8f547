"""A short form of the benchmark: no kind of data is far slower than by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

FAR_OUTSIDE = 1.25  # of the loop by hand over the same kind of data
# rows that docs/performance.md names as slower than by hand: a small model takes 20 to 40 us for a
# batch that is already there, and what fitkit does for a batch as long
FAR_OUTSIDE_OF = {
    ("step", "items that draw from random and NumPy"): 1.4,
    ("evaluate", "list of batches"): 1.75,
    ("evaluate", "generator of batches"): 2.75,
    ("predict", "Dataset of one's own"): 1.4,
    ("predict", "IterableDataset"): 1.4,
    ("predict", "list of batches"): 2.75,
    ("predict", "generator of batches"): 3.5,
}
TRIES = 4
ALL = 17
SOME = ["TensorDataset", "Dataset of one's own", "IterableDataset", "list", "generator"]
MEASURED = {"step": [], "everything": [*SOME, "from random"], "evaluate": SOME, "predict": SOME}


def measure(folder: Path, what: str, kinds: list[str]) -> dict:
    """The figures of a short run, in a process of its own, which sets its number of threads."""
    script, figures = Path(__file__).with_name("loaders.py"), folder / "figures.json"
    command = [sys.executable, script, "--short", "--what", what, "--only", ";".join(kinds)]
    done = subprocess.run(
        [*command, "--json", figures], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text())[what]


@pytest.mark.parametrize("what", MEASURED)
def test_no_kind_of_data_is_far_slower_than_by_hand(tmp_path, what):
    least: dict[str, float] = {}
    left = MEASURED[what]
    for _ in range(TRIES):  # what else the machine does can only add to a ratio's least value
        for name, figures in measure(tmp_path, what, left).items():
            least[name] = min([least.get(name, float("inf")), *figures["cpu"]])
            by_hand, own = figures["figures"]
            assert own == pytest.approx(by_hand, rel=1e-6) or "draw" in name, name
        assert len(least) == (len(MEASURED[what]) or ALL)
        left = [name for name, one in least.items() if one > _bound(what, name)]
        if not left:
            return
    found = {name: round(least[name], 2) for name in left}
    pytest.fail(f"{what} takes {found} times that by hand")


def _bound(what: str, name: str) -> float:
    return FAR_OUTSIDE_OF.get((what, name), FAR_OUTSIDE)
