"""What the save queue reads of a handler."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fitkit import AutoSaver, Callback, ModelCheckpoint, NNHandler
from fitkit.core.state_placement import detached_copy
from fitkit.handler.save_source import _HandlerSource
from fitkit.handler.state_dict import ENTRIES

DATA = (torch.ones(4, 2), torch.zeros(4, 1))


class Listens(Callback):
    def __init__(self):
        self.heard = []

    def on_checkpoint_saved(self, path, logs):
        self.heard.append((path, dict(logs)))


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


@pytest.fixture
def source(handler):
    return _HandlerSource(handler)


def test_a_snapshot_is_the_whole_state_with_mapped_tensors(handler, source):
    snapshot = source.take_snapshot(detached_copy)
    assert list(snapshot) == list(ENTRIES)
    weight = snapshot["model_state_dict"]["weight"]
    assert torch.equal(weight, handler.module.weight)
    assert weight.data_ptr() != handler.module.weight.data_ptr()


def test_weights_are_those_of_evaluation(handler, source):
    handler.fit(DATA, epochs=2, ema_decay=0.9, progress_bar=False)
    weights = source.take_weights(detached_copy)
    assert torch.equal(weights["weight"], handler.ema.weights()["weight"])
    assert not torch.equal(weights["weight"], handler.module.weight)


def test_a_saver_finds_its_own_state_among_those_of_its_name(handler, source, tmp_path):
    savers = [ModelCheckpoint(tmp_path / name, monitor="loss") for name in ("a", "b", "c")]
    for number, saver in enumerate(savers[:2]):
        handler.add_callback(saver)
        saver.last_step = number
    snapshot = source.take_snapshot(detached_copy)
    for saver in savers[:2]:
        assert source.saver_state(saver, snapshot)["last_step"] == saver.last_step
    assert source.saver_state(savers[2], snapshot) == {}  # it is not attached


def test_only_savers_are_listed_in_order(handler, source, tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="loss")
    second = AutoSaver(1, tmp_path)
    for callback in (first, Callback(), second):
        handler.add_callback(callback)
    assert source.savers() == [first, second]


def test_a_file_is_current_until_training_goes_on(handler, source, tmp_path):
    path = tmp_path / "a.pth"
    assert not source.is_current(path)
    handler.fit(DATA, progress_bar=False)
    handler.save(path)
    assert source.is_current(path)
    handler.fit(DATA, progress_bar=False)
    assert not source.is_current(path)
    path.write_bytes(b"no checkpoint")
    assert not source.is_current(path)


def test_a_durable_file_is_logged_and_announced_to_callbacks(handler, source, tmp_path, caplog):
    handler.add_callback(listens := Listens())
    with caplog.at_level(logging.INFO, logger="fitkit"):
        source.announce(tmp_path / "a.pth")
    assert listens.heard == [(str(tmp_path / "a.pth"), {})]
    assert caplog.messages == [f"saved {tmp_path / 'a.pth'}"]


def test_a_run_that_stops_for_a_value_that_is_not_finite(handler, source):
    assert not source.is_non_finite()
    handler.state.stop("loss is NaN", non_finite=True)
    assert source.is_non_finite()


def test_outside_of_a_run_there_is_nothing_to_gather(handler, source):
    with source.gathered_from_ranks():
        assert source.take_snapshot(detached_copy)["progress"].get("others", []) == []
