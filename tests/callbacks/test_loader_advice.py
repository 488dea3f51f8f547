import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit.callbacks import loader_advice
from fitkit.callbacks.loader_advice import LoaderAdvice
from fitkit.core.fetch_clock import FetchClock

SETTINGS = {"num_workers": 2, "pin_memory": False}


def passed(clock, batches, waiting, working, starting=0.0):
    clock.num_batches += batches
    clock.waiting_seconds += waiting + starting
    clock.starting_seconds += starting
    clock.working_seconds += working


def advice(settings=SETTINGS, **options):
    return LoaderAdvice(clock := FetchClock(), settings, **options), clock


def test_it_tells_the_figure_and_the_remedy_once():
    adviser, clock = advice()
    passed(clock, 412, 63.0, 37.0)
    said = adviser.look()
    assert said.startswith("the loader took 63% of the time of the last 412 batches")
    assert "raise num_workers (now 2)" in said
    assert "pin_memory" not in said
    passed(clock, 412, 63.0, 37.0)
    assert adviser.look() is None


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
    adviser, clock = advice()
    passed(clock, batches, waiting, working, starting)
    assert adviser.look() is None


def test_each_window_is_judged_by_itself():
    adviser, clock = advice()
    passed(clock, 1000, 0.0, 1000.0)
    assert adviser.look() is None
    passed(clock, 60, 6.0, 1.0)
    assert adviser.look() is None
    passed(clock, 60, 6.0, 1.0)
    assert "86% of the time of the last 120 batches" in adviser.look()


def test_nothing_is_said_about_data_in_memory():
    adviser, clock = advice(None)
    passed(clock, 1000, 90.0, 10.0)
    assert adviser.look() is None


@pytest.mark.parametrize(
    ("settings", "pins", "expected"),
    [
        ({}, True, "pass a Dataset or DataLoader with num_workers"),
        (SETTINGS, True, "set pin_memory=True, set persistent_workers=True"),
        ({"num_workers": 0, "pin_memory": True}, True, r"\(now 0\), or do less for each sample"),
    ],
)
def test_the_remedy_fits_the_loader(settings, pins, expected):
    adviser, clock = advice(settings, pins=pins)
    passed(clock, 1000, 90.0, 10.0)
    with pytest.raises(UserWarning, match=expected):
        raise UserWarning(adviser.look())


class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(0.003)
        return super().__getitem__(index)


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.setattr(loader_advice, "WINDOW_BATCHES", 10)
    monkeypatch.setattr(loader_advice, "WINDOW_SECONDS", 0.05)
    # what is measured is real, what counts as much is not: the machine may be busy otherwise
    monkeypatch.setattr(loader_advice, "TOO_LARGE_SHARE", 0.0)

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
