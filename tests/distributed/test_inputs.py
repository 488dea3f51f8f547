"""Batches that are no pair of tensors: two processes train, evaluate and predict as one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "inputs_run.py"
NAMES = ("packed", "packed with another input", "list", "collated pair", "graph", "no targets")


@pytest.fixture(scope="module")
def results(tmp_path_factory, kit):
    """What one process and two have, by the name of the case."""
    out = tmp_path_factory.mktemp("inputs")
    for command in ([sys.executable], kit.torchrun(2)):
        subprocess.run([*command, str(SCRIPT), str(out)], check=True, timeout=120)
    return {
        rank: json.loads((out / f"{rank}.json").read_text()) for rank in ("one", "rank0", "rank1")
    }


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_follow_one(results, name):
    assert set(results["one"]) == set(NAMES)
    one = results["one"][name]
    assert len(one["predictions"]) == 8
    for rank in ("rank0", "rank1"):
        for key, right in one.items():
            assert results[rank][name][key] == pytest.approx(right, abs=1e-9), key
    assert results["rank0"][name] == results["rank1"][name]
