"""What a function of ``on_rank`` may do by itself, and what it is refused."""

from __future__ import annotations

import threading

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.alone import alone, is_alone, require_company


def test_alone_is_over_after_the_function():
    assert not is_alone()
    with alone(), alone():
        assert is_alone()
    assert not is_alone()
    with pytest.raises(ZeroDivisionError), alone():
        1 / 0  # noqa: B018
    assert not is_alone()


def test_another_thread_is_not_alone():
    """Such as one that writes a checkpoint together with those of other ranks."""
    found = []
    with alone():
        thread = threading.Thread(target=lambda: found.append(is_alone()))
        thread.start()
        thread.join()
    assert found == [False]


def test_what_needs_all_ranks_is_refused():
    require_company("fit")
    with alone(), pytest.raises(ConfigurationError, match="fit needs all ranks, but only some run"):
        require_company("fit")


# ---- two processes ------------------------------------------------------------------------------

REFUSED = {
    "alone_saves_in_epoch": "handler.save in the middle of an epoch needs all ranks",
    "alone_fits": "fit needs all ranks",
    "alone_and_sharded": "evaluate needs all ranks for a sharded model (FSDP)",
}


@pytest.fixture(scope="module")
def runs(failing_ranks):
    return failing_ranks(["alone_evaluates", "alone_saves", "on_several_ranks", *REFUSED])


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_one_rank_may_evaluate_and_predict_the_whole_data(runs):
    first, second = (runs["alone_evaluates"][rank]["returned"] for rank in (0, 1))
    assert len(first[0]) == 8  # with and without barrier, two epochs, within and between
    for loss, expected, predicted, in_batches, size in first[0]:
        assert loss == pytest.approx(expected, rel=1e-6)
        assert (predicted, in_batches, size) == (64, 64, 2)
    assert second[0] == [None] * 8
    # training was that of a run which did not look
    assert first[1] is second[1] is True
    assert first[2] == second[2]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_a_function_may_run_on_several_ranks(runs):
    first, second = (runs["on_several_ranks"][rank]["returned"] for rank in (0, 1))
    failed = "ZeroDivisionError: integer division or modulo by zero"
    assert first == [0, 0, f"RankError: rank 1 failed, and with it the run: {failed}", [0, 1]]
    assert second == [1, None, failed, [0, 1]]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
def test_one_rank_may_save_between_epochs_and_train_a_handler_of_its_own(runs):
    assert runs["alone_saves"][0]["returned"] == ["1 2", "1 3"]
    assert runs["alone_saves"][1]["returned"] == [None, None]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_wait_for_the_others_is_refused(name, runs):
    first, second = runs[name]
    assert first["type"] == "ConfigurationError"
    assert first["text"].startswith(REFUSED[name])
    assert second["type"] == "RankError"
    assert REFUSED[name] in second["text"]
