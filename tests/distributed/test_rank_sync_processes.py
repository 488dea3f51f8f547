"""What one process wishes, or suffers, happens to all of them, within seconds."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.no_cover]

# From the strike until the launcher has returned: torchrun looks after its processes every 0.1 s,
# and interpreters take their time to end; a collective would wait for 30 minutes.
SECONDS_TO_END = 10.0
LONG = ("--epochs", "200", "--delay", "0.01")

IN_ONE_LAUNCH = {
    "stop": ["--epochs", "50", "--delay", "0.005", "--strike", "stop", "1", "9"],
    "interrupt": ["--epochs", "50", "--delay", "0.005", "--strike", "SIGINT", "1", "9"],
    "interrupt_main": ["--epochs", "50", "--delay", "0.005", "--strike", "SIGINT", "0", "9"],
    "timed": ["--every-n-seconds", "0.1", "--delay", "0.01", "--epochs", "5"],
    "cheap": ["--max-overhead", "0.3", "--delay", "0.01", "--epochs", "5", "--background"],
    "alone": ["--save-by-hand", "epoch", "--epochs", "2"],
    "own_folders": ["--own-folders", "--save-freq", "3", "--keep", "--epochs", "2"],
    "counted": ["--count", "--epochs", "4"],
    "on_rank": ["--on-rank"],
    "nan": ["--strike", "nan", "1", "9", "--save-freq", "1", "--epochs", "50"],
    "contributed": ["--contribute", "--epochs", "2"],
}


@pytest.fixture(scope="module")
def runs(shared_launcher, tmp_path_factory):
    """Runs that end in an orderly way."""
    out = tmp_path_factory.mktemp("agreed")
    return shared_launcher.run_cases(out, IN_ONE_LAUNCH, processes=2)


@pytest.mark.parametrize("name", ["stop", "interrupt", "interrupt_main"])
def test_all_end_at_the_same_step(name, runs, kit):
    first, second = (kit.result(runs / name, rank) for rank in (0, 1))
    assert first["step"] == second["step"] < 50 * 7
    assert first["stop_reason"] == second["stop_reason"]
    assert first["interrupted"] == second["interrupted"] == (name != "stop")
    ended = max(kit.clock_of(runs / name, rank)["times"][-1] for rank in (0, 1))
    assert ended - kit.struck_at(runs / name) < 2.0
    kit.assert_equal(second, first, but=("drawn",))


def test_the_reason_is_that_of_the_process_that_stopped(runs, kit):
    assert kit.result(runs / "stop")["stop_reason"] == "enough on purpose"


def test_saves_by_the_clock(runs, kit):
    for name, pattern in (("timed", "timed_*.pth"), ("cheap", "cheap_*.pth")):
        assert kit.result(runs / name, 1)["step"] == kit.result(runs / name)["step"] == 5 * 7
        assert list((runs / name).glob(pattern))


def test_the_main_process_may_save_alone_between_epochs(runs):
    assert len(list((runs / "alone").glob("alone_*.pth"))) == 2


def test_only_the_main_process_writes(runs):
    assert (runs / "own_folders" / "of_rank0" / "log.csv").exists()
    assert list((runs / "own_folders" / "of_rank0" / "steps").iterdir())
    assert not (runs / "own_folders" / "of_rank1").exists()


def test_collectives_per_epoch_and_per_step(runs, kit):
    # Of an epoch: one sum in training, one in validation, one agreement at its end; besides these
    # an agreement now and then, about four a second. At its end the savers ask whether a value was
    # not finite and tell what they know, and callbacks tell what they contributed.
    found = kit.clock_of(runs / "counted")["collectives"]
    seconds = kit.clock_of(runs / "counted")["times"]
    now_and_then = 2 + 4 * (seconds[-1] - seconds[0] + 0.25)
    assert found["all_reduce"] <= 5 * 3 + 3 + now_and_then, found
    # the order of a best save and its end; the same at start and end. Once a fit, rank 0 tells
    # whether it has locked its files, and what it found beside them.
    assert found.get("broadcast", 0) <= 4 * 2 + 2 + 2, found
    # before each sum, the names of what is summed; the chunks of an EpochMetric; what callbacks
    # have logged, in each epoch and at the end; once a fit, what the ranks were given and the norms
    # of the gradients before and after the first backward pass; those of the weights after the
    # first step and each epoch
    assert found.get("all_gather", 0) <= 3 * 2 * 4 + 4 + 1 + 3 + 1 + 4, found
    assert found.pop("barrier") == 1  # fit begins on all ranks
    assert set(found) <= {"all_reduce", "broadcast", "all_gather"}


def test_on_rank_runs_there_and_fails_everywhere(runs, kit):
    where = runs / "on_rank"
    first, second = (kit.result(where, rank) for rank in (0, 1))
    assert (first["waits"], second["waits"]) == ((0, 0), None)
    assert (first["goes on"], second["goes on"]) == ((0, 1), None)
    assert (first["last"], second["last"]) == (None, (1, 2))
    assert first["fails"] == ("ZeroDivisionError", "10 is too much")
    kind, text = second["fails"]
    assert (kind, "rank 0 failed" in text, "10 is too much" in text) == ("RankError", True, True)
    kind, text = first["fails on the last"]
    assert (kind, "rank 1 failed" in text, "11 is too much" in text) == ("RankError", True, True)
    assert second["fails on the last"] == ("ZeroDivisionError", "11 is too much")
    assert first["and after"] == second["and after"] == [0, 1]


def test_a_value_that_is_not_finite_on_one_process_ends_all(runs, kit):
    first, second = (kit.result(runs / "nan", rank) for rank in (0, 1))
    assert first["step"] == second["step"] < 50 * 7
    assert first["stop_reason"] == second["stop_reason"]
    assert "the training loss is nan in batch" in first["stop_reason"]


def test_a_value_that_is_not_finite_on_one_process_is_not_saved(runs):
    from fitkit.checkpointing.catalog import latest

    saved = latest.read_full(runs / "nan" / "runs" / "last.pth")
    assert saved["progress"]["state"]["global_step"] == 8
    assert all(value.isfinite().all() for value in saved["model_state_dict"].values())


def test_what_callbacks_contribute_is_the_same_on_all(runs, kit):
    first, second = (kit.result(runs / "contributed", rank) for rank in (0, 1))
    kit.assert_equal(second, first, but=("drawn",))


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_ends_all_and_is_told(failing, launcher, tmp_path, kit):
    out = tmp_path / "out"
    ended = launcher.run(out, *LONG, "--strike", "raise", failing, 5)
    assert ended.code != 0
    assert ended.at - kit.struck_at(out) < SECONDS_TO_END
    own, other = kit.error_of(out, failing), kit.error_of(out, 1 - failing)
    assert (own["type"], own["text"]) == ("ValueError", "boom on purpose")
    assert other["type"] == "RankError"
    assert f"rank {failing} failed" in other["text"]
    assert "ValueError: boom on purpose" in other["text"]
    assert max(own["time"], other["time"]) - kit.struck_at(out) < 2.0


@pytest.mark.slow
def test_an_error_at_the_very_end_is_told_too(launcher, tmp_path, kit):
    out = tmp_path / "out"
    ended = launcher.run(out, "--epochs", 1, "--strike", "raise-at-end", 1, 0)
    assert ended.code != 0
    assert ended.at - kit.struck_at(out) < SECONDS_TO_END
    assert kit.error_of(out, 1)["type"] == "ValueError"
    assert "boom on purpose" in kit.error_of(out, 0)["text"]


@pytest.mark.slow
def test_a_killed_process_takes_all_with_it(launcher, tmp_path, kit):
    out = tmp_path / "out"
    ended = launcher.run(out, *LONG, "--strike", "SIGKILL", 1, 5)
    assert ended.code != 0
    assert ended.at - kit.struck_at(out) < SECONDS_TO_END
    assert not launcher.members()
