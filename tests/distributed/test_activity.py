"""What a rank tells of where it is."""

from __future__ import annotations

import threading
import time

import pytest

from fitkit.distributed.activity import Activity, stack_of_main_thread


def test_operations_are_numbered_and_remembered():
    activity = Activity()
    assert activity.status()["place"] == "no verb"
    activity.verbs.append("fit")
    activity.position = lambda: "epoch 1, step 5"
    with activity.inside("sum"):
        status = activity.status()
    assert (status["operation"], status["begun"], status["count"]) == ("fit (sum)", 0, 1)
    assert status["place"] == "fit, epoch 1, step 5"
    with pytest.raises(ValueError, match="boom"), activity.inside("gather"):
        raise ValueError("boom")
    after = activity.status()
    assert (after["operation"], after["count"]) == (None, 2)
    assert after["known"] == {"0": "fit (sum)", "1": "fit (gather)"}


def test_the_count_is_torch_s_where_it_counts():
    counts = iter([7, 9])
    activity = Activity(lambda: next(counts))
    with activity.inside("sum"):
        assert activity.begun == 7
        assert activity.status()["count"] == 9
    assert activity.status  # not asked again


def test_few_operations_are_remembered():
    activity = Activity()
    for _ in range(1000):
        with activity.inside("sum"):
            pass
    known = activity.status()["known"]
    assert len(known) == 256
    assert set(known) == {str(index) for index in range(744, 1000)}


def test_each_begin_and_end_is_progress():
    activity, seen = Activity(), []
    with activity.inside("sum"):
        seen.append(activity.progress)
    seen.append(activity.progress)
    assert seen == [1, 2]


def test_the_stack_is_that_of_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(stack_of_main_thread()))
    thread.start()
    thread.join()
    assert "test_the_stack_is_that_of_the_main_thread" in found[0]


def test_an_operation_costs_little():
    """A training step has one or two."""
    activity = Activity()
    began = time.perf_counter()
    for _ in range(1000):
        with activity.inside("sum"):
            pass
    assert (time.perf_counter() - began) / 1000 < 50e-6


def test_a_step_is_over_also_after_an_error():
    activity = Activity()

    def fail():
        with activity.step():
            assert activity.status()["in_step"]
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert not activity.status()["in_step"]
