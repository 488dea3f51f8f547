"""Batches that are no pair of tensors: two processes train, evaluate and predict as one does."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "inputs_run.py"
NAMES = ("packed", "packed with another input", "list", "collated pair", "graph", "no targets")


@pytest.fixture(scope="module")
def results(tmp_path_factory, kit):
    """What one process and two have, by the name of the case."""
    return kit.results_of(SCRIPT, tmp_path_factory.mktemp("inputs"))


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
