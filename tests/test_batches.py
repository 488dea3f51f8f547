"""The table in docs/batches.md: each row on one process and on two, against values by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from batch_kinds import KINDS

SCRIPT = Path(__file__).parent / "scripts" / "batch_kinds.py"
PAGE = Path(__file__).parents[1] / "docs" / "batches.md"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one process and of both of two."""
    root = tmp_path_factory.mktemp("batches")
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        (root / name).mkdir()
        command = [sys.executable, *launcher, SCRIPT, root / name]
        subprocess.run(command, check=True, timeout=120)
    return {
        path.relative_to(root).as_posix(): json.loads(path.read_text())
        for path in sorted(root.glob("*/*.json"))
    }


@pytest.mark.ddp
@pytest.mark.parametrize("where", ["one/0.json", "two/0.json", "two/1.json"])
@pytest.mark.parametrize("title", KINDS)
def test_means_are_over_what_the_page_says(title, where, results):
    row = results[where][title]
    assert row["found"] == pytest.approx([row["expected"]] * 5, abs=1e-6)
    assert row["samples"] == row["expected_samples"]


def test_the_page_has_a_row_for_each_of_them():
    table = PAGE.read_text().partition("| batch |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert [row.removeprefix("| ").partition(" | ")[0] for row in rows] == list(KINDS)
