"""AutoSaver: its arguments, the names of its files and the epochs that are due."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import AutoSaver, ConfigurationError, NNHandler, Retention


@pytest.mark.parametrize("interval", [-2, 1.0, "1", True, float("nan"), []])
def test_an_interval_that_is_no_number_of_epochs(interval):
    with pytest.raises(ConfigurationError, match=r"from 1, -1 .*None or 0 \(off\); received"):
        AutoSaver(interval)


def test_a_name_that_is_no_format_is_refused_before_training():
    with pytest.raises(ConfigurationError, match="not a valid format string"):
        AutoSaver(1, save_model_name="{epoch")


def test_overwriting_and_a_retention_exclude_each_other():
    assert AutoSaver(1).retention is None
    assert AutoSaver(1, overwrite_last_saved=True).retention == Retention(keep_last=1)
    with pytest.raises(ConfigurationError):
        AutoSaver(1, overwrite_last_saved=True, retention=Retention(keep_last=2))


def attached(*args, **options):
    saver = AutoSaver(*args, **options)
    saver.handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    return saver


@given(
    interval=st.none() | st.integers(-1, 4),
    epoch=st.integers(0, 9),
    is_last=st.booleans(),
    save_on_last=st.booleans(),
)
def test_the_epochs_that_are_due(interval, epoch, is_last, save_on_last):
    saver = attached(interval, save_on_last_epoch=save_on_last)
    saver.save_if_due(epoch, is_last=is_last, logs={})
    if interval in (None, 0):
        expected = 0
    elif interval == -1:
        expected = int(is_last)
    else:
        expected = int((epoch + 1) % interval == 0 or (is_last and save_on_last))
    assert len(saver.handler.saves) == expected


def test_nothing_is_saved_after_a_value_that_is_not_finite():
    saver = attached(1)
    saver.handler.state.stop("the loss is NaN", non_finite=True)
    saver.save_if_due(0, is_last=True, logs={})
    assert len(saver.handler.saves) == 0


def test_names_count_epochs_from_1_and_stay_in_the_folder():
    saver = attached(1, "models", "m_{epoch:02d}_{global_step}_{loss:.2f}")
    saver.handler.state.global_step = 7
    assert saver.file_for(0, {"loss": 0.5}) == Path("models/m_01_7_0.50.pth")
    # the counter and not what a callback logged under its name
    assert saver.file_for(0, {"loss": 0.5, "epoch": 9.0}).name == "m_01_7_0.50.pth"
    with pytest.warns(RuntimeWarning, match="no value for 'loss'"):
        assert saver.file_for(1, {}).parent == Path("models")


def test_a_run_of_four_epochs(tmp_path):
    handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    saver = AutoSaver(3, tmp_path / "new", "{epoch}")
    data = (torch.zeros(2, 1), torch.zeros(2, 1))
    handler.fit(data, epochs=4, callbacks=[saver], progress_bar=False)
    assert sorted(path.name for path in saver.folder.iterdir()) == ["3.pth", "4.pth"]
    assert (saver.identity(), saver.last_path) == ("{epoch}", "4.pth")
