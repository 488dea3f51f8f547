"""The logs that hooks receive on two ranks: the same bits on both, and those of a single rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitkit import Event

pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.no_cover]

SCRIPT = Path(__file__).with_name("logs_run.py")
RUNS = ("everything", "custom step", "predict")
BATCH_END = ("on_train_batch_end", "on_test_batch_end")


@pytest.fixture(scope="module")
def found(tmp_path_factory, kit):
    return kit.results_of(SCRIPT, tmp_path_factory.mktemp("logs"))


def logs_of(calls, event, callback="Reads"):
    """The logs of each call of one hook of one callback, as floats."""
    return [
        {name: float.fromhex(bits) for name, bits in args[-1].items()}
        for hook, name, args, _ in calls
        if (hook, name) == (event, callback)
    ]


def test_every_built_in_callback_takes_part(found):
    assert found["rank0"]["exported"] == [[]]


def test_every_hook_was_called(found):
    calls = [*found["rank0"]["everything"], *found["rank0"]["predict"]]
    assert {call[0] for call in calls} == {e.value for e in Event} - {"on_exception"}


@pytest.mark.parametrize("run", RUNS)
def test_logs_are_the_same_bits_in_every_hook_of_every_callback(found, run):
    # a checkpoint is announced where it is written
    first = [call for call in found["rank0"][run] if call[0] != "on_checkpoint_saved"]
    second = found["rank1"][run]
    assert len(first) == len(second) > 15
    for one, other in zip(first, second, strict=True):
        assert one == other


def test_also_in_an_evaluation_outside_of_fit(found):
    assert found["rank0"]["evaluate"] == found["rank1"]["evaluate"]
    logs = logs_of(found["rank0"]["evaluate"][1], "on_test_batch_end")
    single = logs_of(found["one"]["evaluate"][1], "on_test_batch_end")
    assert [sorted(one) for one in logs] == [["accuracy", "loss", "mean", "outputs"]] * 4
    for one, other in zip(logs, single, strict=True):
        # trained with other learning rates than a single rank: what callbacks log is of rank 0
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("event", BATCH_END)
def test_logs_of_a_batch_are_those_of_a_single_rank(found, event):
    """A batch whose ranks have 1 and 2 labels, and one of which a rank has no sample."""
    single, several = (logs_of(found[name]["everything"], event) for name in ("one", "rank0"))
    assert len(single) == len(several) == 4 * 4
    for one, other in zip(several, single, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_name_that_one_rank_has_in_some_batches_is_in_the_logs_of_both(found):
    logs = logs_of(found["rank1"]["custom step"], "on_train_batch_end")[:4]
    assert [log.get("late") for log in logs] == [None, None, 3.0, None]
    # the second batch is that of rank 0 alone
    assert set(logs[1]) == {"loss", "accuracy", "outputs", "mean"}


def test_what_callbacks_log_is_that_of_rank_0(found):
    last = logs_of(found["rank1"]["everything"], "on_train_end")[-1]
    hooks = ("train_batch_begin", "train_batch_end", "optimizer_step_begin", "optimizer_step_end")
    hooks += ("epoch_begin", "test_begin", "test_batch_begin", "test_batch_end", "test_end")
    for name in hooks:
        assert last[f"of_on_{name}"] == last[f"of_90_on_{name}"] == 4.0, name
    assert last["of_on_epoch_end"] == last["of_90_on_epoch_end"] == 5.0
    assert last["of_on_checkpoint_saved"] > 0  # called on rank 0 only
    assert last["samples_per_second"] > 0  # as rank 0 measures it


def test_a_later_callback_reads_what_an_earlier_one_logs_at_the_end_of_the_epoch(found):
    for rank in ("rank0", "rank1"):
        values = [
            log["of_on_epoch_end"] for log in logs_of(found[rank]["everything"], "on_epoch_end")
        ]
        assert values == [2.0, 3.0, 4.0, 5.0]


def test_schedulers_and_monitors_decide_alike(found):
    assert found["rank0"]["lr"] == found["rank1"]["lr"]
    assert found["rank0"]["weights"] == found["rank1"]["weights"]
    assert found["rank0"]["lr"] == pytest.approx(found["one"]["lr"])


def test_built_in_callbacks_cause_no_communication_per_batch(found):
    """Four epochs of four training and four validation batches."""
    counts = found["rank0"]["collectives"]
    assert counts == found["rank1"]["collectives"]
    # an all-reduce of losses and metrics per pass and one of stops per epoch, some now and then
    assert counts["all_reduce"] < 4 * 4 + 13
    # names of what is summed; what is logged before the schedule, and after ThroughputMonitor; once
    # a fit, what the ranks were given and the norms of the gradients before and after the first
    # backward pass; those of the weights after the first step and each epoch
    assert counts["all_gather"] <= 1 + 4 * (2 + 2) + 3 + 1 + 4


def test_a_callback_on_one_rank_only_hears_what_both_know(found):
    (heard, live), (nothing, same) = (
        found["rank0"]["only on rank 0"],
        found["rank1"]["only on rank 0"],
    )
    assert (nothing, live) == (0, same)
    assert heard > 100
    assert live["of_on_epoch_end"] == (5.0).hex()
