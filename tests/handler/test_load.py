"""A handler built from a file: which class, which parts, and which calls of ``fit`` are counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, NNHandler
from fitkit.handler.load import load_handler, load_weights
from fitkit.handler.state_dict import SkipParts

DATA = (torch.ones(4, 2), torch.zeros(4, 1))


def make(seed=0, **sizes):
    sizes = {"in_features": 2, "out_features": 1, **sizes}
    handler = NNHandler(nn.Linear, "cpu", model_type="regression", seed=seed, **sizes)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained handler with averaged weights, and its file."""
    handler = make()
    for _ in range(2):
        handler.fit(DATA, ema_decay=0.5, progress_bar=False)
    path = tmp_path_factory.mktemp("load") / "model.pth"
    handler.save(path)
    return handler, path


def load(path, kind=NNHandler, *, model=None, skip=None, strict=True):
    skip = SkipParts() if skip is None else skip
    return load_handler(kind, path, "cpu", None, model, skip, strict, trust_code=False)


def test_the_loaded_handler_goes_on_from_where_the_file_was_saved(saved):
    handler, path = saved
    loaded = load(path)
    assert loaded.parts.model_type.value == "regression"
    assert (loaded.state.call, loaded.state.epoch, loaded.seed) == (2, 2, 0)
    assert loaded.train_losses == handler.train_losses
    for name, value in handler.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)


def test_the_class_of_the_handler_is_the_caller_s(saved):
    class Mine(NNHandler):
        pass

    assert type(load(saved[1], Mine)) is Mine


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "history", "callbacks", "ema"])
def test_parts_that_are_skipped(saved, part):
    loaded = load(saved[1], skip=SkipParts(**{part: True}))
    assert (loaded.optimizer is None) is (part == "optimizer")
    assert (loaded.ema is None) is (part == "ema")
    assert (loaded.train_losses == []) is (part == "history")
    assert loaded.state.epoch == 2


def test_a_model_that_cannot_be_built_is_an_error(saved):
    class Fails(nn.Linear):
        def __init__(self, in_features, out_features):
            raise OSError("no file")

    with pytest.raises(CheckpointError, match=r"no file .OSError.*pass model_class=<a ready"):
        load(saved[1], model=Fails)


def test_another_model_needs_strict_off(saved):
    wider = nn.ModuleDict({"head": nn.Linear(2, 1)})
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint: 'head.bias'"):
        load(saved[1], model=wider, skip=SkipParts(optimizer=True))
    skip = SkipParts(optimizer=True, ema=True)
    assert load(saved[1], model=wider, skip=skip, strict=False).module is wider


def test_weights_alone_are_the_averaged_ones_and_nothing_else(saved):
    handler, path = saved
    fresh = make(seed=1)
    load_weights(fresh, path, strict=True)
    for name, value in handler.ema.weights().items():
        assert torch.equal(fresh.module.state_dict()[name], value)
        assert not torch.equal(handler.module.state_dict()[name], value)
    assert (fresh.state.epoch, fresh.seed, fresh.ema) == (0, 1, None)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_shape_change_nothing(saved, strict):
    other = make(in_features=3)
    before = [value.clone() for value in other.module.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"\(1, 2\) in the checkpoint and \(1, 3\)"):
        load_weights(other, saved[1], strict=strict)
    assert all(map(torch.equal, before, other.module.state_dict().values()))
