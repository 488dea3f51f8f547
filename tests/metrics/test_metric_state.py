"""The state of metrics that accumulate by themselves: what is saved, restored and refused."""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fitkit import CheckpointError, ConfigurationError, LambdaCallback, NNHandler
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.metrics.metric_state import load_state, require_state, saves_itself, state_of

torchmetrics = pytest.importorskip("torchmetrics")


class AllAtOnce:
    """Keeps everything in attributes of many kinds, beside functions that come from the script."""

    def __init__(self, score=math.fsum, scale=1.0):
        self.score, self.scale, self.half = score, scale, functools.partial(math.pow, 0.5)
        self.reset()

    def reset(self):
        self.seen, self.last, self.counts = [], deque(maxlen=2), np.zeros(3)
        self.best, self.by_name = None, {"sum": 0}

    def update(self, outputs, targets):
        self.seen.append((outputs, targets))
        self.last.append(float(outputs.sum()))
        self.counts[len(self.seen) % 3] += 1
        self.best = outputs.max() if self.best is None else torch.maximum(self.best, outputs.max())
        self.by_name["sum"] += len(outputs)
        self.late = True

    def compute(self):
        parts = [float(sum(o.sum() for o, _ in self.seen)), *self.last, *self.counts]
        return self.scale * self.score([*parts, float(self.best), self.by_name["sum"]])


class InModule(nn.Module):
    """A module whose sum is a buffer and whose samples are a plain list."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.samples = []

    def reset(self):
        self.total.zero_()
        self.samples = []

    def update(self, outputs, targets):
        self.total += outputs.sum()
        self.samples.append(outputs)

    def compute(self):
        return self.total + torch.cat(self.samples).max()


class OwnState(AllAtOnce):
    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def fed(metric, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        metric.update(torch.rand(4, generator=generator), torch.ones(4))
    return metric


@pytest.mark.parametrize("make", [AllAtOnce, InModule])
def test_a_metric_goes_on_in_the_middle_as_if_nothing_had_happened(make):
    metric = fed(make(), range(3))
    saved = encode(state_of(metric), tensor_map=torch.clone)
    fed(metric, range(3, 5))  # what follows does not change what was saved
    other = make()
    load_state("m", other, decode(saved))
    assert other.compute() != metric.compute()
    assert fed(other, range(3, 5)).compute() == metric.compute()
    again = make()
    load_state("m", again, decode(saved))
    assert fed(again, range(3, 5)).compute() == metric.compute()


def test_functions_come_from_the_script_and_attributes_from_the_state():
    metric = fed(AllAtOnce(score=math.fsum), range(2))
    other = AllAtOnce(score=max)
    load_state("m", other, state_of(metric))
    assert other.score is max
    assert len(other.seen) == 2
    load_state("m", other, state_of(AllAtOnce()))
    assert not hasattr(other, "late")


def test_a_restored_metric_does_not_change_the_state_it_was_restored_from():
    saved = state_of(fed(AllAtOnce(), range(2)))
    other = AllAtOnce()
    load_state("m", other, saved)
    fed(other, range(2))
    third = AllAtOnce()
    load_state("m", third, saved)
    assert len(third.seen) == 2


def test_a_metric_with_both_methods_saves_itself():
    assert saves_itself(OwnState())
    assert saves_itself(torchmetrics.MeanMetric())
    assert not saves_itself(InModule())
    assert set(state_of(OwnState())) == {"seen"}


def test_a_state_that_an_earlier_fitkit_did_not_save():
    with pytest.raises(CheckpointError, match=r"without the state of metric 'm'.*end of an epoch"):
        load_state("m", AllAtOnce(), {})


class OnlySaves(AllAtOnce):
    def state_dict(self):
        return {}


class OnlyLoads(AllAtOnce):
    def load_state_dict(self, state):
        pass


class Slots:
    __slots__ = ("total",)
    reset = update = compute = lambda *args: 0.0


class SlotsBelow(Slots):
    def __init__(self):
        self.total = self.other = 1


class InAList(list):
    update = compute = reset = lambda *args: 0.0


def in_closures():
    seen = []
    return SimpleNamespace(update=lambda o, t: seen.append(o), compute=len, reset=seen.clear)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (OnlySaves, r"has state_dict but no load_state_dict.*give OnlySaves both"),
        (OnlyLoads, r"has load_state_dict but no state_dict.*give OnlyLoads both"),
        (Slots, "Slots keeps its state elsewhere"),
        (SlotsBelow, "SlotsBelow keeps its state elsewhere"),
        (InAList, "InAList keeps its state elsewhere"),
        (in_closures, "SimpleNamespace keeps its state elsewhere"),
    ],
)
def test_what_cannot_be_found_is_refused_when_the_metric_is_added(make, sentence):
    with pytest.raises(ConfigurationError, match=f"metric 'm' .*{sentence}"):
        require_state("m", make())
    handler = NNHandler(nn.Linear, in_features=2, out_features=1)
    with pytest.raises(ConfigurationError, match=f"metric 'm' .*{sentence}"):
        handler.add_metric("m", make())
    assert handler.parts.metrics == {}


def test_what_becomes_unsavable_is_an_error_of_the_save(tmp_path):
    class Later(AllAtOnce):
        def update(self, outputs, targets):
            super().update(outputs, targets)
            self.lock = threading.Lock()

    handler = NNHandler(nn.Linear, in_features=2, out_features=1, model_type="regression")
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.add_metric("later", Later())

    def save(batch, logs):
        handler.save(tmp_path / "m.pth")

    with pytest.raises(CheckpointError, match=r"'later'.*'lock'.*is a _thread.lock"):
        handler.fit(
            (torch.ones(8, 2), torch.ones(8, 1)),
            batch_size=4,
            callbacks=[LambdaCallback(on_train_batch_end=save)],
            progress_bar=False,
        )
    assert not list(tmp_path.iterdir())
