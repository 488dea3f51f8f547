"""``auto_save_epoch`` in a training loop of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import NNHandler, SaveError
from fitkit.checkpointing.trainer_saving import auto_save_epoch


@pytest.fixture
def handler():
    return NNHandler(nn.Linear, in_features=1, out_features=1, seed=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("interval", "save_on_last", "expected"),
    [
        (2, True, ["2", "4", "5"]),
        (2, False, ["2", "4"]),
        (-1, True, ["5"]),
        (-1, False, ["5"]),
        (9, False, []),
        (None, True, []),
    ],
)
def test_epochs_that_are_due(handler, tmp_path, interval, save_on_last, expected):
    handler.auto_save(interval, tmp_path, "{epoch}")
    for epoch in range(5):
        auto_save_epoch(handler, epoch, 5, save_on_last, {})
    assert names(tmp_path) == [f"{name}.pth" for name in expected]


def test_the_file_is_there_and_current_on_return(handler, tmp_path):
    handler.auto_save(1, tmp_path, "same")
    for epoch in range(2):  # no step is counted between the two
        with torch.no_grad():
            handler.module.weight.fill_(float(epoch))
        auto_save_epoch(handler, epoch, 9, False, {})
        assert NNHandler.load(tmp_path / "same.pth").module.weight.item() == epoch


def test_the_logs_are_for_the_name_and_stay_as_they_are(handler, tmp_path):
    logs = {"loss": 0.25}
    handler.auto_save(1, tmp_path, "{epoch}_{loss:.1f}", overwrite=True)
    for epoch in range(2):
        auto_save_epoch(handler, epoch, 2, True, logs)
    assert logs == {"loss": 0.25}
    assert names(tmp_path) == ["2_0.2.pth"]


def test_without_auto_save_nothing_happens(handler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    auto_save_epoch(handler, 0, 1, True, {})
    assert names(tmp_path) == []


def test_a_file_that_cannot_be_written(handler, tmp_path):
    (tmp_path / "1.pth").mkdir()
    handler.auto_save(1, tmp_path, "{epoch}")
    with pytest.raises(SaveError, match=r"1\.pth"):
        auto_save_epoch(handler, 0, 2, True, {})
    auto_save_epoch(handler, 1, 2, True, {})
    assert names(tmp_path) == ["1.pth", "2.pth"]
