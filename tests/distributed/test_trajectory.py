"""Several processes follow one process, and know the same."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

CASES = (
    "arrays",
    "nothing_for_a_rank",
    "one_in_the_last_batch",
    "odd_batch",
    "augmented_by_workers",
    "loader",
    "batch_sampler",
    "batches",
    "batches_in_windows",
    "windows",
    "windows_of_unknown_end",
    "sparse",
    "validation_sets",
    "float32",
)
# Fewer processes than the others show the same.
OF_THREE = (
    "nothing_for_a_rank",
    "one_in_the_last_batch",
    "odd_batch",
    "loader",
    "batches",
    "windows",
)
OWN = ("drawn",)  # what the hooks of each process draw


@pytest.fixture(scope="module")
def three(shared_launcher, tmp_path_factory, cases):
    """Some of it in three processes."""
    chosen = {name: cases.trajectories[name] for name in OF_THREE}
    return shared_launcher.run_cases(tmp_path_factory.mktemp("three"), chosen, processes=3)


def tolerance_of(name):
    return 1e-5 if name == "float32" else 1e-9


def test_every_case_is_looked_at(cases):
    assert set(CASES) == set(cases.trajectories)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(name, one, two, kit):
    expected = kit.result(one / name)
    assert expected["samples"] > 0
    for rank in (0, 1):
        kit.assert_close(kit.result(two / name, rank), expected, tolerance_of(name), but=OWN)


@pytest.mark.parametrize("name", CASES)
def test_both_processes_know_the_same_to_the_bit(name, two, kit):
    kit.assert_equal(kit.result(two / name, 1), kit.result(two / name, 0), but=OWN)


@pytest.mark.parametrize("name", OF_THREE)
def test_three_processes_follow_one(name, one, three, kit):
    expected = kit.result(one / name)
    for rank in range(3):
        kit.assert_close(kit.result(three / name, rank), expected, tolerance_of(name), but=OWN)
        kit.assert_equal(kit.result(three / name, rank), kit.result(three / name), but=OWN)
