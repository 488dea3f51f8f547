"""A loss module with parameters and buffers, which no wrapper keeps equal on all ranks."""

from __future__ import annotations

import shutil

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

LEARNED = ["--loss", "learned", "--epochs", "2", "--clip", "0.3", "--ema", "0.9"]
# Uneven shares, windows that no batch fills, and a rank that has nothing.
TRAJECTORIES: dict[str, list[str]] = {
    "learned": LEARNED,
    "windows": [*LEARNED, "--train", "29", "--accumulation", "3"],
    "unknown_end": [*LEARNED, "--data", "stream", "--batch", "12", "--accumulation", "3"],
    "nothing_for_a_rank": [*LEARNED, "--train", "1", "--val", "1"],
}
FSDP = ["--strategy", "fsdp"]
# Ends inside the second window of each epoch of four batches.
SAVED = ["--loss", "normed", "--train", "29", "--epochs", "2", "--accumulation", "3"]
SAVED += ["--ema", "0.9", "--clip", "0.3", "--save-freq", "1", "--keep"]
PLACES = ("001", "003", "004", "006")
OWN = ("drawn",)


def named(cases):
    return {**cases, **{f"{name}_fsdp": [*how, *FSDP] for name, how in cases.items()}}


@pytest.fixture(scope="module")
def whole(shared_launcher, tmp_path_factory):
    """One process."""
    out = tmp_path_factory.mktemp("whole")
    return shared_launcher.run_cases(out, TRAJECTORIES, processes=1)


@pytest.fixture(scope="module")
def spread(shared_launcher, tmp_path_factory):
    """Two processes."""
    out = tmp_path_factory.mktemp("spread")
    return shared_launcher.run_cases(out, named({**TRAJECTORIES, "saved": SAVED}), processes=2)


@pytest.fixture(scope="module")
def again(shared_launcher, tmp_path_factory, spread):
    """Two processes go on from files of two."""
    out, wanted = tmp_path_factory.mktemp("again"), {}
    for name, how in named({"saved": SAVED}).items():
        for place in PLACES:
            case = f"{name}_from_{place}"
            (out / case).mkdir(parents=True)
            shutil.copy(spread / name / "log.csv", out / case)
            wanted[case] = [*how, "--resume-from", str(spread / name / "steps" / f"{place}.pth")]
    return shared_launcher.run_cases(out, wanted, processes=2)


@pytest.mark.parametrize("name", list(named(TRAJECTORIES)))
def test_two_processes_follow_one(name, whole, spread, kit):
    expected = kit.result(whole / name.removesuffix("_fsdp"))
    assert float(expected["loss"]["temperature"]) != 0.0
    for rank in (0, 1):
        kit.assert_close(kit.result(spread / name, rank), expected, 1e-9, but=OWN)
    kit.assert_equal(kit.result(spread / name, 1), kit.result(spread / name, 0), but=OWN)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["saved", "saved_fsdp"])
def test_a_resumed_run_ends_bit_for_bit_as_uninterrupted(name, place, spread, again, kit):
    for rank in (0, 1):
        found, expected = (
            kit.result(where, rank) for where in (again / f"{name}_from_{place}", spread / name)
        )
        # averages of statistics are those of each process; the main one's count
        kit.assert_equal(found, expected, but=(*OWN, "averaged_loss") if rank else OWN)


def test_all_ranks_have_the_loss_of_rank_0(spread, kit):
    for name in ("saved", "saved_fsdp"):
        temperatures = [kit.result(spread / name, rank)["loss"]["temperature"] for rank in (0, 1)]
        assert temperatures[0] == temperatures[1]
