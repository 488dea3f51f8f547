"""Metrics of two processes are those of one, also where a rank has no batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchmetrics")

SCRIPT = Path(__file__).parents[1] / "scripts" / "metrics_run.py"


@pytest.mark.ddp
@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one(launcher, tmp_path, kit):
    launcher.run_script(SCRIPT, tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # to the bit
    refused = first.pop("refused")
    assert refused.startswith("metric 'plain' (Plain) accumulates by itself")
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True)
    expected = json.loads((tmp_path / "rank0.json").read_text())
    assert "refused" not in expected
    names = {"order_outputs", "order_last_2", "sums_2", "lists_area", "function_1", "first_1"}
    assert {*names, *(f"val_{name}" for name in names - {"first_1"})} <= set(expected["fit"])
    # the step logs by the first sample of a share, so names depend on how a batch is shared
    by_share = [name for name in {**expected["arrays"], **first["arrays"]} if "first" in name]
    for name in by_share:
        first["arrays"].pop(name, None)
        expected["arrays"].pop(name, None)
    kit.assert_close(first, expected, 1e-9)
