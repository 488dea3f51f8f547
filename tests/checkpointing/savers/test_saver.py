"""Saver: what it requests, remembers and gives up; runs are in callbacks/test_model_checkpoint."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import CheckpointError, ModelCheckpoint, NNHandler, Retention
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saver import PREEMPTED_NAME
from fitkit.core.errors import Preempted


def saver_in(folder, **options):
    saver = ModelCheckpoint(folder / "{epoch}.pth", **options)
    saver.handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    return saver


def test_the_file_of_this_step_is_not_requested_again(tmp_path):
    saver = saver_in(tmp_path)
    saver.mark_written(SaveRequest(saver, tmp_path / "1.pth", step=0))
    saver.request_save(tmp_path / "1.pth")
    assert saver.requested == ()
    saver.handler.state.global_step = 1
    saver.request_save(tmp_path / "1.pth")
    assert [request["name"] for request in saver.requested] == ["1.pth"]
    saver.mark_written(SaveRequest(saver, tmp_path / "sub" / "2.pth", step=1))
    assert saver.state_dict()["writing"] == ("1.pth", "sub/2.pth")


@given(
    files=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.booleans(), st.booleans())),
    keep=st.integers(1, 3),
)
def test_files_are_kept_or_to_be_deleted_or_last_and_a_rollback_undoes_it(files, keep):
    folder = Path("runs")
    saver = ModelCheckpoint(folder / "{epoch}.pth", retention=Retention(keep_last=keep))
    for number, rank, is_lasting, preempted in files:
        before, snapshot = saver.file_state(), copy.deepcopy(saver.file_state())
        name = PREEMPTED_NAME if preempted else f"{number}.pth"
        options = {"rank": rank, "is_lasting": is_lasting, "preempted": preempted}
        request = SaveRequest(saver, folder / name, 1, **options)
        saver.mark_written(request)
        kept = [name for name, _ in saver.kept]
        assert len(set(kept)) == len(kept) <= keep
        assert not set(kept) & set(saver.to_delete)
        assert (name in kept) is not (preempted or is_lasting)
        assert saver.preempted_path == (name if preempted else None)
        after = saver.file_state()
        saver.rollback(before)
        assert saver.file_state() == snapshot
        saver.rollback(after)
        assert saver.commit(None) == [folder / name for name in dict.fromkeys(after["dropping"])]


def test_a_protected_file_is_deleted_by_a_later_save(tmp_path):
    saver = saver_in(tmp_path)
    saver.to_delete, saver.in_flight, saver.requested = ("a.pth", "b.pth"), ("c.pth",), ({},)
    assert saver.commit((tmp_path / "b.pth").resolve()) == [tmp_path / "a.pth"]
    assert (saver.to_delete, saver.in_flight, saver.requested) == (("b.pth",), (), ())
    assert saver.commit(None) == [tmp_path / "b.pth"]


@pytest.mark.parametrize("change", [{"kept": [1]}, {"asked": [{}]}, {"writing": 3}])
def test_a_state_that_cannot_be_read_changes_nothing(tmp_path, change):
    saver = saver_in(tmp_path)
    before = saver.state_dict()
    with pytest.raises(CheckpointError, match="saved state of callback 'ModelCheckpoint'"):
        saver.load_state_dict({**before, "last_path": "new.pth", **change})
    assert saver.state_dict() == before


def test_a_restart_finishes_the_save_but_touches_no_other_file(tmp_path):
    saver = saver_in(tmp_path)
    (tmp_path / "mine.txt").write_text("text")
    torch.save({}, tmp_path / "old.pth")
    saver.in_flight = ("new.pth", "old.pth", "mine.txt")
    saver.handler.add_callback(saver)
    saver.resubmit()
    saver.handler.saves.flush()
    assert (tmp_path / "mine.txt").read_text() == "text"
    assert torch.load(tmp_path / "old.pth") == {}, "the file says of no run that wrote it"
    assert (tmp_path / "new.pth").exists()


@pytest.mark.parametrize(
    ("error", "weights_only", "expected"),
    [
        (Preempted(signal.SIGTERM), False, [PREEMPTED_NAME]),
        (Preempted(signal.SIGTERM), True, []),
        (ValueError(), False, []),
    ],
)
def test_an_error_withdraws_requests(tmp_path, error, weights_only, expected):
    saver = saver_in(tmp_path, save_weights_only=weights_only)
    saver.request_save(tmp_path / "1.pth")
    saver.on_exception(error)
    assert [request["name"] for request in saver.requested] == expected
    assert len(saver.handler.saves) == len(expected)
