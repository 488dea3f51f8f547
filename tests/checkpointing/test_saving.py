from __future__ import annotations

import copy
import logging
import os

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, NNHandler, SaveError
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.saving import save_multi_files, save_multi_from_single, save_single_file
from fitkit.checkpointing.trainer_saving import auto_save_epoch


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, in_features=2, out_features=1, seed=7)
    handler.set_optimizer(torch.optim.Adam, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.fit((torch.ones(4, 2), torch.ones(4, 1)), progress_bar=False)
    return handler


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


def test_single_file(handler, tmp_path, caplog):
    state = handler.get_state_dict()
    before = copy.deepcopy(state)
    with caplog.at_level(logging.INFO, logger="fitkit"):
        assert save_single_file(handler, state, str(tmp_path / "models" / "m.pth")) is None
    assert same(state, before), "the argument was changed"
    assert "m.pth" in caplog.text
    assert same(NNHandler.load(tmp_path / "models" / "m.pth").get_state_dict(), before)


def test_a_part_of_a_state_is_saved_as_it_is(handler, tmp_path):
    save_single_file(handler, {"mine": [1, torch.ones(2)]}, tmp_path / "m.pth")
    assert torch.load(tmp_path / "m.pth", weights_only=True)["mine"][0] == 1


def test_a_failure_is_logged_and_raised(handler, tmp_path, caplog):
    (tmp_path / "m.pth").mkdir()
    with caplog.at_level(logging.ERROR, logger="fitkit"), pytest.raises(SaveError):
        save_single_file(handler, handler.get_state_dict(), tmp_path / "m.pth")
    assert "could not save" in caplog.text
    with pytest.raises(CheckpointError, match=r"state\['a'\]"):
        save_single_file(handler, {"a": object()}, tmp_path / "n.pth")
    assert os.listdir(tmp_path) == ["m.pth"]


def test_multiple_files(handler, tmp_path):
    state = handler.get_state_dict()
    before = copy.deepcopy(state)
    save_multi_files(handler, state, tmp_path / "a" / "m.v1.pth")
    assert same(state, before), "the argument was changed"
    assert sorted(os.listdir(tmp_path / "a")) == [
        "m.v1_model_kwargs.pth",
        "m.v1_model_state_dict.pth",
        "m.v1_optimizer_state_dict.pth",
    ]
    kwargs = torch.load(tmp_path / "a" / "m.v1_model_kwargs.pth", weights_only=True)
    assert kwargs == {"in_features": 2, "out_features": 1, "seed": 7}
    loaded = NNHandler.initialize_from_checkpoint(
        tmp_path / "a" / "m.v1_model_state_dict.pth", nn.Linear, in_features=2, out_features=1
    )
    assert torch.equal(loaded.module.weight, handler.module.weight)


def test_an_sde_goes_into_the_arguments(handler, tmp_path):
    state = {**handler.get_state_dict(), "sde": {"class": "a:B", "kwargs": {"beta": 1.0}}}
    save_multi_files(handler, state, tmp_path / "m", ["model_kwargs"])
    kwargs = torch.load(tmp_path / "m_model_kwargs.pth", weights_only=True)
    assert (kwargs["sde_class"], kwargs["sde_kwargs"]) == ("a:B", {"beta": 1.0})
    assert "sde" not in state["model_kwargs"]


def test_keys_that_are_not_there(handler, tmp_path):
    with pytest.raises(CheckpointError, match="Did you mean 'model_state_dict'"):
        save_multi_files(
            handler, handler.get_state_dict(), tmp_path / "m", ["history", "model_state"]
        )
    assert os.listdir(tmp_path) == [], "something was written"


def test_from_a_single_file(handler, tmp_path):
    handler.save(tmp_path / "m.pth")
    before = (tmp_path / "m.pth").read_bytes()
    save_multi_from_single(tmp_path / "m.pth")
    save_multi_from_single(
        str(tmp_path / "m.pth"), keys_to_save=["history", "scheduler_state_dict"]
    )
    assert (tmp_path / "m.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["m.pth"]
        + [
            f"m_{key}.pth"
            for key in [
                "model_state_dict",
                "optimizer_state_dict",
                "model_kwargs",
                "history",
                "scheduler_state_dict",
            ]
        ]
    )
    with pytest.raises(CheckpointError, match="no 'nothing'"):
        save_multi_from_single(tmp_path / "m.pth", ["nothing"])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        save_multi_from_single(tmp_path / "list.pth")


def test_saving_does_not_change_what_is_trained(tmp_path):
    def run(save):
        torch.manual_seed(3)
        handler = NNHandler(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1)), seed=1)
        nn.init.ones_(handler.module[1].weight)
        nn.init.ones_(handler.module[1].bias)
        handler.set_optimizer(torch.optim.Adam, lr=0.1)
        handler.set_loss_fn(nn.MSELoss())
        hook = fitkit.LambdaCallback(
            on_train_batch_end=lambda b, logs: save and handler.save(tmp_path / "m.pth")
        )
        data = (torch.arange(12.0).view(6, 2), torch.ones(6, 1))
        handler.fit(data, epochs=3, batch_size=2, callbacks=[hook], progress_bar=False)
        return handler.module[1].weight, torch.rand(())

    for plain, saved in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, saved)


# ---- auto_save_epoch ----------------------------------------------------------------------------


def own_loop(handler, total, **options):
    for epoch in range(total):
        with torch.no_grad():
            handler.module.bias.fill_(epoch)
        auto_save_epoch(handler, epoch, total, logs={"val_loss": 1.0 + epoch}, **options)


def test_a_loop_of_ones_own(handler, tmp_path):
    handler.auto_save(2, tmp_path, "m_epoch{epoch}_{val_loss:.1f}")
    own_loop(handler, 5, save_on_last_epoch=True)
    assert sorted(os.listdir(tmp_path)) == [
        "m_epoch2_2.0.pth",
        "m_epoch4_4.0.pth",
        "m_epoch5_5.0.pth",
    ]


def test_without_the_last_epoch(handler, tmp_path):
    handler.auto_save(2, tmp_path, "{epoch}")
    own_loop(handler, 5, save_on_last_epoch=False)
    assert sorted(os.listdir(tmp_path)) == ["2.pth", "4.pth"]


def test_only_the_last_epoch(handler, tmp_path):
    handler.auto_save(-1, tmp_path, "{epoch}", overwrite=True)
    own_loop(handler, 3, save_on_last_epoch=False)
    assert os.listdir(tmp_path) == ["3.pth"]


@pytest.mark.parametrize("name", ["last", "m{epoch}"])
def test_overwriting_in_a_loop_of_ones_own(handler, tmp_path, name):
    """Steps do not move here, and still each epoch's file holds that epoch's weights."""
    handler.auto_save(1, tmp_path, name, overwrite=True)
    own_loop(handler, 3, save_on_last_epoch=True)
    assert len(os.listdir(tmp_path)) == 1
    state = torch.load(next(tmp_path.iterdir()), weights_only=True)
    assert state["model_state_dict"]["bias"].item() == 2.0


def test_without_auto_save_nothing_happens(handler, tmp_path):
    own_loop(handler, 2, save_on_last_epoch=True)
    handler.add_callback(AutoSaver(None, tmp_path))
    own_loop(handler, 2, save_on_last_epoch=True)
    assert os.listdir(tmp_path) == []


def test_a_value_that_is_missing_falls_back(handler, tmp_path):
    handler.auto_save(1, tmp_path, "model_epoch{epoch}_acc{accuracy:.2f}")
    with pytest.warns(RuntimeWarning, match="available are 'epoch', 'global_step', 'val_loss'"):
        own_loop(handler, 1, save_on_last_epoch=False)
    assert os.listdir(tmp_path) == ["model_epoch1.pth"]
