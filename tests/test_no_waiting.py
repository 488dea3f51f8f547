"""A step that logs nothing reads no tensor: on an accelerator each reading waits for it."""

from __future__ import annotations

import io
import sys
import traceback

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import fitkit

# Operations whose result has to be known on the host before it goes on.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
# Ways of reading that torch takes past its dispatcher.
UNSEEN = ("tolist", "numpy", "cpu", "__array__")


class Readings(TorchDispatchMode):
    """Notes where a tensor is read."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found: list[str] = []
        for name in UNSEEN:
            monkeypatch.setattr(torch.Tensor, name, self._noting(getattr(torch.Tensor, name), name))

    def _noting(self, method, name):
        def read(tensor, *args, **kwargs):
            self.note(name)
            return method(tensor, *args, **kwargs)

        return read

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
        self.found.append(f"{what} at {frames[-3].filename}:{frames[-3].lineno}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(WAITING):
            self.note(name)
        return function(*args, **(kwargs or {}))


class Watch(fitkit.Callback):
    """Counts readings from the first batch to the last, whatever happens between them included."""

    order = -1000

    def __init__(self, readings: Readings, num_batches: int) -> None:
        self.readings = readings
        self.num_batches = num_batches
        self.inside = False
        self.steps = 0

    def on_train_batch_begin(self, batch, logs):
        if batch == 0:
            self.readings.__enter__()
            self.readings.found.clear()
            self.inside = True
        elif batch == self.num_batches - 1:
            self.seen = list(self.readings.found)
            self.readings.__exit__(None, None, None)
            self.inside = False
        self.steps += self.inside


class Terminal(io.StringIO):
    def isatty(self):
        return True


NUM_BATCHES = 140  # more than two folds of the running means


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains with everything attached, and gives what was read between the first and last batch."""
    # the CPU stands for an accelerator
    monkeypatch.setattr("fitkit.callbacks.terminate_on_nan.is_on_host", lambda tensor: False)
    monkeypatch.setattr(sys, "stderr", Terminal())

    def _train(data, *callbacks, **options):
        readings = Readings(monkeypatch)
        watch = Watch(readings, NUM_BATCHES)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        handler = fitkit.NNHandler(model, "cpu", seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        for name, metric in METRICS.items():
            handler.add_metric(name, metric)
        attached = [
            watch,
            fitkit.ProgressBar(refresh_seconds=1e6),
            fitkit.CSVLogger(tmp_path / "log.csv"),
            fitkit.ModelCheckpoint(str(tmp_path / "{epoch}.pth"), save_freq="epoch"),
            fitkit.TerminateOnNaN(check_every_n_batches=10_000),
            *callbacks,
        ]
        settings = {"gradient_clipping_norm": 1.0, "gradient_clipping_value": 0.5, "ema_decay": 0.9}
        handler.fit(data, callbacks=attached, **{**settings, **options})
        assert watch.steps == NUM_BATCHES - 1
        return watch.seen

    return _train


METRICS = {
    "accuracy": fitkit.Accuracy(),
    "top2": fitkit.TopKAccuracy(k=2),
    "certainty": lambda outputs, targets: outputs.softmax(1).amax(1).mean(),
}
DATA = (torch.randn(NUM_BATCHES * 2, 4), torch.randint(3, (NUM_BATCHES * 2,)))


@pytest.mark.parametrize(
    "data",
    [DATA, DataLoader(TensorDataset(*DATA), batch_size=2, shuffle=True)],
    ids=["in memory", "own DataLoader"],
)
def test_steps_that_log_nothing_read_nothing(train, data):
    options = {} if isinstance(data, DataLoader) else {"batch_size": 2}
    assert train(data, **options) == []


def test_windows_of_several_batches_read_nothing_either(train):
    assert train(DATA, batch_size=2, gradient_accumulation_steps=4) == []


def test_a_tracker_reads_rows_in_bulk(train, tmp_path):
    logger = fitkit.TensorBoardLogger(tmp_path / "tb", every_n_batches=7, refresh_seconds=1e6)
    assert train(DATA, logger, batch_size=2) == []


def test_a_callback_that_reads_is_found(train):
    """The counter counts: a callback that reads is found, and where it does it."""

    class Reading(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            if batch in (3, 4):
                logs["loss"]
            if batch == 5:
                logs.raw("loss").tolist()

    found = train(DATA, Reading(), batch_size=2)
    assert [line.split()[0] for line in found] == ["_local_scalar_dense"] * 2 + ["tolist"]
    assert all("/test_no_waiting.py" in line or "/logs.py" in line for line in found)
