"""What one rank raises, in whatever it calls, ends all of them within seconds and is told."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from fitkit.core.errors import RankError
from fitkit.distributed import failures

# 1 to 3.5 s on an idle machine; with ten busy processes per core several times as much
SECONDS_TO_RAISE = 10.0
# what rank 1 raises; the others hear of it
CASES = {"interrupt_in_hook": ("KeyboardInterrupt", ""), "evaluate_data": ("OSError", "bad sample")}
SLOW = {
    "predict_batches": ("OSError", "bad sample"),
    "setter": ("ValueError", "Invalid learning rate: -1.0"),
    "caught_in_hook": ("RankError", "rank 1 failed, and with it the run: OSError: bad sample"),
    "train_step": ("ValueError", "bad step"),
    "train_data": ("OSError", "bad sample"),
    "train_worker": ("OSError", "Caught OSError in DataLoader worker process 0"),
    "exit_in_hook": ("SystemExit", "3"),
    "evaluate_metric": ("ZeroDivisionError", "bad metric"),
    "evaluate_model": ("ValueError", "bad forward"),
    "evaluate_callback": ("ValueError", "bad hook"),
    "predict_data": ("OSError", "bad sample"),
    "predict_callback": ("ValueError", "bad hook"),
    "constructor": ("ValueError", "bad model"),
    "load": ("CheckpointNotFoundError", "there is no file"),
    "save": ("ValueError", "bad meters"),
    "epoch_end": ("ValueError", "bad epoch"),
    "device": ("ConfigurationError", "device must be a torch.device"),
    "background_save": ("RankError", "rank 1 failed, and with it the run: OSError: bad disk"),
    "second_failure": ("KeyError", "'second'"),
}


# ranks of which the process ends, and the exit code of that
ENDED = {
    "hard_exit": (1, 7),
    "killed": (1, -9),
    "killed_main": (0, -9),
    "killed_in_predict": (1, -9),
    "killed_before_load": (1, -9),
    "early_end": (1, 0),
}


@pytest.fixture(scope="module")
def fast(failing_ranks):
    return failing_ranks([*CASES, "all_raise_in_fit"])


@pytest.fixture(scope="module")
def slow(failing_ranks):
    late = ["all_raise_in_backward", "all_interrupt_in_turn", "slow_to_hear"]
    late += ["killed_as_receiver", "killed_as_sender"]
    return failing_ranks([*SLOW, *ENDED, *late, "all_raise", "all_interrupt", "copies"])


def assert_all_failed(ranks, kind, text):
    first, other = ranks[1], ranks[0]
    assert (first["type"], first["text"].startswith(text)) == (kind, True), first
    cause = text.removeprefix("rank 1 failed, and with it the run: ")
    assert other["type"] == "RankError", other
    assert other["text"].startswith("rank 1 failed, and with it the run: "), other
    assert cause in other["text"]
    assert max(first["seconds"], other["seconds"]) < SECONDS_TO_RAISE


@pytest.mark.ddp
@pytest.mark.no_cover
@pytest.mark.parametrize("name", CASES)
def test_an_error_of_one_rank_is_raised_on_all(name, fast):
    assert_all_failed(fast[name], *CASES[name])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", SLOW)
def test_an_error_of_one_rank_is_raised_on_all_too(name, slow):
    assert_all_failed(slow[name], *SLOW[name])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", ENDED)
def test_a_rank_whose_process_ends_ends_the_other(name, slow):
    rank, code = ENDED[name]
    other = slow[name][1 - rank]
    assert slow[name][rank]["code"] == code
    assert other["type"] == "RankError", other
    assert other["text"].startswith(
        f"rank {rank} failed, and with it the run: its process has ended without an error"
    )
    assert f"rank {1 - rank} waited for it in " in other["text"]
    assert other["ended"] < SECONDS_TO_RAISE


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "killed"), [("killed_as_receiver", 1), ("killed_as_sender", 0)])
def test_a_rank_that_is_killed_in_a_transfer_ends_the_other(name, killed, slow):
    """gloo does not wake who waits for such a transfer before the timeout of half an hour."""
    other = slow[name][1 - killed]
    assert slow[name][killed]["code"] == -9
    told = f"RankError: rank {killed} failed, and with it the run: its process has ended"
    assert other["error file"]["message"]["message"].startswith(told)
    # it has raised the error, or has ended where it was
    assert (other["type"], other["code"]) in [("RankError", 0), ("nothing", 1)]
    assert other["ended"] < 10


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_rank_that_failed_does_not_wait_for_its_workers(slow):
    """torch waits five seconds for each, if the garbage collector finds their iterator."""
    assert max(rank["ended"] for rank in slow["train_worker"]) < 5.0


@pytest.mark.ddp
@pytest.mark.no_cover
def test_a_call_after_a_failure_raises_at_once_on_all_ranks(fast):
    for rank in (0, 1):
        again = fast["evaluate_data"][rank]["again"]
        assert again.startswith("RankError: rank 1 failed, and with it the run: OSError: bad sam")
        assert again.endswith(
            "fit needs all ranks, and they can no longer communicate: start the program again."
        )


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.no_cover
def test_after_an_error_that_all_ranks_raised_they_can_go_on(slow):
    """As in a notebook: a wrong argument, and once more with the right one."""
    first, second = (slow["all_raise"][rank]["returned"] for rank in (0, 1))
    kinds = ["ConfigurationError", "ValueError", "ValueError", "ConfigurationError"]
    assert first[0] == second[0] == [*kinds, "CheckpointNotFoundError"]
    assert first[1:] == second[1:]
    assert first[1][1] < first[1][0]


@pytest.mark.ddp
@pytest.mark.no_cover
def test_after_an_error_of_all_ranks_in_training_they_can_go_on(fast):
    """In the model, in hooks of batches and epochs, and in the data."""
    first, second = (fast["all_raise_in_fit"][rank]["returned"] for rank in (0, 1))
    assert first[0] == ["ValueError", "ValueError", "ValueError", "OSError"]
    assert first == second
    assert first[1][1] < first[1][0]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_after_an_error_of_all_ranks_in_a_backward_pass_they_can_go_on(slow):
    first, second = (slow["all_raise_in_backward"][rank]["returned"] for rank in (0, 1))
    assert first == second
    assert first[0] == 1
    assert first[1][1] < first[1][0]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_hook_may_take_long_after_an_error_of_all_ranks(slow):
    first, second = (slow["slow_to_hear"][rank]["returned"] for rank in (0, 1))
    assert first == second
    assert len(first) == 2


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.no_cover
def test_an_interrupt_that_all_ranks_raise_ends_fit_as_ctrl_c_does(slow):
    for rank in (0, 1):
        assert slow["all_interrupt"][rank]["returned"] == [[True] * 3, 2]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_whoever_raises_an_interrupt_has_an_interrupt(slow):
    kinds = [slow["all_interrupt_in_turn"][rank]["type"] for rank in (0, 1)]
    assert kinds == ["KeyboardInterrupt"] * 2


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.no_cover
def test_a_deep_copy_shares_the_ranks_and_a_pickle_is_refused(slow):
    first, second = (slow["copies"][rank]["returned"] for rank in (0, 1))
    assert first == second
    losses, again, is_shared, told = first
    assert (losses, is_shared) == (again, True)
    assert told.startswith("a handler of several ranks cannot be pickled, because it is connected")
    assert "handler.save" in told


@pytest.mark.ddp
@pytest.mark.no_cover
def test_torchrun_s_error_file_names_the_cause(fast):
    errors = [fast["evaluate_data"][rank]["error file"]["message"] for rank in (0, 1)]
    assert errors[1]["message"] == "OSError: bad sample"
    assert "failing_ranks.py" in errors[1]["extraInfo"]["py_callstack"]
    # torchrun takes the earliest
    assert (
        errors[0]["message"] == "RankError: rank 1 failed, and with it the run: OSError: bad sample"
    )
    assert int(errors[0]["extraInfo"]["timestamp"]) > int(errors[1]["extraInfo"]["timestamp"])


# ---- the store ----------------------------------------------------------------------------------


def test_the_first_failure_is_kept():
    store = dist.HashStore()
    assert failures.failure_of_another(store, 0) is None
    assert failures.publish(store, 1, ValueError("boom")) is None
    first = failures.publish(store, 0, OSError("later"))
    assert (first.rank, first.told) == (1, "ValueError: boom")
    assert failures.failure_of_another(store, 1) is None
    assert failures.failure_of_another(store, 0).told == "ValueError: boom"


def test_who_alone_raises_does_not_wait_for_ever():
    store, began = dist.HashStore(), time.monotonic()
    assert not failures.all_ranks_raised(store, "here", 2, 0.1)
    assert 0.1 <= time.monotonic() - began < 2.0
    assert failures.all_ranks_raised(store, "here", 2, 0.1)  # the second
    assert not failures.all_ranks_raised(store, "there", 2, 0.0)


def test_who_raises_after_a_failure_does_not_wait():
    store, began = dist.HashStore(), time.monotonic()
    failures.publish(store, 1, ValueError("boom"))
    assert not failures.all_ranks_raised(store, "here", 2, 60.0)
    assert time.monotonic() - began < 5.0


def test_without_the_store_nobody_waits():
    def add(*arguments):
        raise dist.DistNetworkError("Broken pipe")

    assert not failures.all_ranks_raised(SimpleNamespace(add=add), "here", 2, 60.0)


# ---- the error file -----------------------------------------------------------------------------


def written(path, monkeypatch, error):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    failures.write_error_file(error)
    return json.loads(path.read_text())["message"]


def test_the_error_file_has_the_error_and_its_traceback(tmp_path, monkeypatch):
    try:
        raise ValueError("boom")
    except ValueError as error:
        message = written(tmp_path / "error.json", monkeypatch, error)
    assert message["message"] == "ValueError: boom"
    assert 'raise ValueError("boom")' in message["extraInfo"]["py_callstack"]
    assert abs(int(message["extraInfo"]["timestamp"]) - time.time()) < 60


def test_an_error_file_of_the_script_stays(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    path.write_text('{"message": "mine"}')
    assert written(path, monkeypatch, RankError(1, "boom")) == "mine"


def test_where_there_is_no_torchrun_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    failures.write_error_file(ValueError("boom"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder"))
    failures.write_error_file(ValueError("boom"))
    assert not list(Path(tmp_path).iterdir())


# ---- ranks that wait in vain --------------------------------------------------------------------

DEADLOCKS = {
    # rank 1 has begun its next step, or asks the others whether to stop, as after a slow batch
    "main_saves_in_epoch": (
        r"handler\.save in the middle of an epoch \(barrier\)",
        r"(a collective of torch|fit \(largest\)), at fit, epoch 0, step 4",
    ),
    "main_evaluates": (r"evaluate \(barrier\)", r"fit \("),
    "main_fits": (r"fit \(", r"predict \("),
}


@pytest.fixture(scope="module")
def in_vain(failing_ranks):
    stopped = ["terminated_while_waiting", "terminated_while_waiting_for_main"]
    stopped += ["terminated_in_step_while_waiting", "timeout_while_waiting_for_main"]
    names = ["stuck_in_data", "slow_rank", "interrupted_twice_while_waiting"]
    return failing_ranks([*DEADLOCKS, *names, *stopped])


def assert_deadlock(name, ranks):
    for found in ranks:
        assert found["type"] == "DeadlockError", found
        for other, call in enumerate(DEADLOCKS[name]):
            assert re.search(rf"rank {other} waits in {call}", found["text"]), found
        assert "epoch" in found["text"] or name == "main_fits"
        assert found["seconds"] < SECONDS_TO_RAISE


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", DEADLOCKS)
def test_a_rank_that_alone_calls_what_needs_all_ends_all(name, in_vain):
    assert_deadlock(name, in_vain[name])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_rank_that_takes_its_time_is_waited_for(in_vain):
    assert [rank["returned"] for rank in in_vain["slow_rank"]] == [[None, 1]] * 2


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_rank_that_is_stuck_in_its_data_is_named_at_the_timeout(in_vain):
    """Four seconds; the rank itself does not come back, and is ended."""
    waiting, stuck = in_vain["stuck_in_data"]
    assert waiting["type"] == "RankError"
    assert waiting["text"].startswith(
        "rank 1 failed, and with it the run: rank 0 waited for it in fit, epoch 0, step 4 too long;"
        " it is in fit, epoch 0, step 4, at\n"
    )
    assert "in __getitem__" in waiting["text"]
    assert waiting["seconds"] < 4 + SECONDS_TO_RAISE
    assert stuck["type"] == "nothing"
    assert stuck["ended"] < 4 + 2 * SECONDS_TO_RAISE


def assert_preempted(found):
    assert (found["type"], found["text"]) == ("Preempted", "143")
    assert found["seconds"] < SECONDS_TO_RAISE


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_sigterm_ends_a_rank_that_waits_in_a_collective(in_vain):
    assert_preempted(in_vain["terminated_while_waiting"][0])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_sigterm_ends_a_rank_that_waits_for_a_stopped_rank_0(in_vain):
    """Rank 0 serves the store, which does not answer then."""
    assert_preempted(in_vain["terminated_while_waiting_for_main"][1])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_sigterm_ends_a_rank_that_waits_for_gradients(in_vain):
    assert_preempted(in_vain["terminated_in_step_while_waiting"][0])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_stopped_rank_0_is_named_at_the_timeout(in_vain):
    found = in_vain["timeout_while_waiting_for_main"][1]
    assert found["type"] == "RankError"
    assert found["text"].startswith(
        "rank 0 failed, and with it the run: rank 1 waited for it in fit, epoch 0, step 4 too long;"
        " it does not answer"
    )
    assert found["seconds"] < 4 + SECONDS_TO_RAISE


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_second_interrupt_ends_a_rank_that_waits_in_a_collective(in_vain):
    found = in_vain["interrupted_twice_while_waiting"][0]
    assert found["type"] == "KeyboardInterrupt"
    assert found["seconds"] < SECONDS_TO_RAISE
