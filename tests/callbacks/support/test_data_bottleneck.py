import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit.callbacks.support import data_bottleneck
from fitkit.callbacks.support.data_bottleneck import DataBottleneck
from fitkit.core.data_timer import DataTimer

SETTINGS = {"num_workers": 2, "pin_memory": False}


def passed(timer, batches, waiting, working, starting=0.0):
    timer.num_batches += batches
    timer.waiting_seconds += waiting + starting
    timer.starting_seconds += starting
    timer.working_seconds += working


def make(settings=SETTINGS, **options):
    return DataBottleneck(timer := DataTimer(), settings, **options), timer


def test_it_tells_the_figure_and_the_remedy_once():
    bottleneck, timer = make()
    passed(timer, 412, 63.0, 37.0)
    warning = bottleneck.check()
    assert warning.startswith("the loader took 63% of the time of the last 412 batches")
    assert "raise num_workers (now 2)" in warning
    assert "pin_memory" not in warning
    passed(timer, 412, 63.0, 37.0)
    assert bottleneck.check() is None


@pytest.mark.parametrize(
    ("batches", "waiting", "working", "starting"),
    [
        (99, 63.0, 37.0, 0.0),  # few batches
        (1000, 6.0, 3.9, 0.0),  # a short time
        (1000, 49.0, 51.0, 0.0),  # not most of it
        (1000, 1.0, 15.0, 100.0),  # starting workers
    ],
)
def test_it_is_silent_unless_it_is_sure(batches, waiting, working, starting):
    bottleneck, timer = make()
    passed(timer, batches, waiting, working, starting)
    assert bottleneck.check() is None


def test_each_window_is_judged_by_itself():
    bottleneck, timer = make()
    passed(timer, 1000, 0.0, 1000.0)
    assert bottleneck.check() is None
    passed(timer, 60, 6.0, 1.0)
    assert bottleneck.check() is None
    passed(timer, 60, 6.0, 1.0)
    assert "86% of the time of the last 120 batches" in bottleneck.check()


def test_nothing_is_said_about_data_in_memory():
    bottleneck, timer = make(None)
    passed(timer, 1000, 90.0, 10.0)
    assert bottleneck.check() is None


@pytest.mark.parametrize(
    ("settings", "pins", "expected"),
    [
        ({}, True, "pass a Dataset or DataLoader with num_workers"),
        (SETTINGS, True, "set pin_memory=True, set persistent_workers=True"),
        ({"num_workers": 0, "pin_memory": True}, True, r"\(now 0\), or do less work per sample"),
    ],
)
def test_the_remedy_fits_the_loader(settings, pins, expected):
    bottleneck, timer = make(settings, pinning_helps=pins)
    passed(timer, 1000, 90.0, 10.0)
    with pytest.raises(UserWarning, match=expected):
        raise UserWarning(bottleneck.check())


class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(0.003)
        return super().__getitem__(index)


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.setattr(data_bottleneck, "WINDOW_BATCHES", 10)
    monkeypatch.setattr(data_bottleneck, "WINDOW_SECONDS", 0.05)
    # what is measured is real, what counts as much is not: the machine may be busy otherwise
    monkeypatch.setattr(data_bottleneck, "LARGEST_SHARE", 0.0)

    def _fit(data, **options):
        handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        handler.fit(data, epochs=2, **options)

    return _fit


TENSORS = (torch.randn(40, 3), torch.zeros(40, dtype=torch.long))


@pytest.mark.parametrize("make", [Slow, lambda *t: DataLoader(Slow(*t), batch_size=1)])
def test_a_slow_loader_is_named_once_per_fit(fit, make):
    options = {} if make is not Slow else {"batch_size": 1}
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"raise num_workers \(now 0\)") as caught:
            fit(make(*TENSORS), **options)
        assert len(caught) == 1


def test_a_slow_iterable_too(fit):
    class Batches:
        def __iter__(self):
            for row in range(40):
                time.sleep(0.003)
                yield tuple(tensor[row : row + 1] for tensor in TENSORS)

    with pytest.warns(UserWarning, match="pass a Dataset or DataLoader"):
        fit(Batches())


def test_in_memory_or_without_a_bar_nothing_is_said(fit):
    fit(TENSORS, batch_size=1)
    fit(TensorDataset(*TENSORS), batch_size=1)
    fit(Slow(*TENSORS), batch_size=1, progress_bar=False)
