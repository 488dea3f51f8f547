"""A step that logs nothing never synchronizes: a simulated device records each synchronization."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit


class Watch(fitkit.Callback):
    """Keeps what was waited for from the first batch to the last, and what happens in between."""

    order = -1000

    def __init__(self, accelerator, phase="train") -> None:
        self.accelerator = accelerator
        self.num_batches = 0
        self.seen = []
        setattr(self, f"on_{phase}_batch_begin", self.look)

    def look(self, batch, logs=None):
        if batch == 0:
            self.accelerator.waits.clear()
        self.seen = list(self.accelerator.waits)
        self.num_batches = batch + 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Certainty(fitkit.Metric):
    def update(self, outputs, targets):
        return outputs.softmax(1).amax(1).sum(), len(outputs)

    def compute(self, sums):
        return sums[0] / sums[1]


NUM_BATCHES = 140  # more than two folds of the running means
FOR_CLASSES = {
    "accuracy": fitkit.Accuracy(),
    "top2": fitkit.TopKAccuracy(k=2),
    "certainty": lambda outputs, targets: outputs.softmax(1).amax(1).mean(),
    "own": Certainty(),
}


class OfEachClass(fitkit.Metric):
    def update(self, outputs, targets):
        return outputs.softmax(1).sum(0)

    def compute(self, sums):
        return sums / sums.sum()


FOR_VALUES = {
    "mse": fitkit.MeanSquaredError(),
    "mae": fitkit.MeanAbsoluteError(),
    "r2": fitkit.R2Score(),
}
X = torch.randn(NUM_BATCHES * 2, 4)
CLASSES, VALUES = torch.randint(3, (NUM_BATCHES * 2,)), torch.randn(NUM_BATCHES * 2, 3)


KEEPING = {  # what more than sums is kept of, or logged for
    "spread": fitkit.EpochMetric(lambda outputs, targets: outputs[targets == 1].std()),
    "small": fitkit.EpochMetric(lambda o, t: (o == t).float().mean(), lambda o: o.argmax(1)),
    "entries": lambda outputs, targets: {"mean": outputs.mean(), "first": outputs[0]},
    "each class": OfEachClass(),
    "unmasked": fitkit.Accuracy(ignore_index=None),
}


def test_every_built_in_metric_is_looked_at():
    metrics = (*FOR_CLASSES.values(), *FOR_VALUES.values(), *KEEPING.values())
    used = {type(metric) for metric in metrics}
    exported = {getattr(fitkit, name) for name in fitkit.__all__}
    kinds = (fitkit.Metric, fitkit.EpochMetric)
    metrics = {one for one in exported if isinstance(one, type) and issubclass(one, kinds)}
    assert metrics - {fitkit.Metric, fitkit.MeanMetric} <= used


@pytest.fixture
def make_handler(accelerator):
    def _make(targets):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        handler = fitkit.NNHandler(model, "sim", seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
        handler.set_loss_fn(nn.CrossEntropyLoss() if targets is CLASSES else nn.MSELoss())
        for name, metric in (FOR_CLASSES if targets is CLASSES else FOR_VALUES).items():
            handler.add_metric(name, metric)
        return handler

    return _make


@pytest.fixture
def train(make_handler, accelerator, monkeypatch, tmp_path):
    """Trains with everything attached; what was waited for between the first and last batch."""
    monkeypatch.setattr(sys, "stderr", Terminal())

    def _train(targets, data, *callbacks, **options):
        watch = Watch(accelerator)
        attached = [
            watch,
            fitkit.ProgressBar(refresh_seconds=1e6),
            fitkit.CSVLogger(tmp_path / "log.csv"),
            fitkit.ModelCheckpoint(str(tmp_path / "{epoch}.pth"), save_freq="epoch"),
            fitkit.TerminateOnNaN(check_every_n_batches=10_000),
            fitkit.JSONLinesLogger(tmp_path / "log.jsonl"),
            fitkit.LearningRateMonitor(),
            fitkit.ThroughputMonitor(),
            fitkit.Timer(),
            fitkit.ConsoleLogger(),
            *callbacks,
        ]
        settings = {"gradient_clipping_norm": 1.0, "gradient_clipping_value": 0.5, "ema_decay": 0.9}
        make_handler(targets).fit(data, callbacks=attached, **{**settings, **options})
        assert watch.num_batches == NUM_BATCHES
        return watch.seen

    return _train


by_targets = pytest.mark.parametrize("targets", [CLASSES, VALUES], ids=["classes", "values"])


WAYS = {
    "in memory": (lambda x, y: (x, y), {"batch_size": 2}),
    "windows": (lambda x, y: (x, y), {"batch_size": 2, "gradient_accumulation_steps": 4}),
    "bf16": (lambda x, y: (x, y), {"batch_size": 2, "precision": "bf16"}),
    "on the device, shuffled": (
        lambda x, y: (x.to("sim"), y.to("sim")),
        {"batch_size": 2, "shuffle": True},
    ),
    "on the device": (lambda x, y: (x.to("sim"), y.to("sim")), {"batch_size": 2, "shuffle": False}),
    "own loader": (
        lambda x, y: DataLoader(TensorDataset(x, y), 2, shuffle=True, pin_memory=True),
        {},
    ),
}


def ways_by_accelerator():
    """Each way on each kind of accelerator; what repeats with -m slow."""
    for way, (make_data, options) in WAYS.items():
        for kind in ("float64", "no float64"):
            marks = () if kind == "float64" or way == "in memory" else pytest.mark.slow
            yield pytest.param(kind, make_data, options, marks=marks, id=f"{kind}-{way}")


@by_targets
@pytest.mark.parametrize(
    ("accelerator", "make_data", "options"), list(ways_by_accelerator()), indirect=["accelerator"]
)
def test_steps_that_log_nothing_wait_for_nothing(targets, make_data, options, train):
    assert train(targets, make_data(X, targets), **options) == []


@by_targets
@pytest.mark.parametrize("place", [lambda one: one, lambda one: one.to("sim")], ids=["host", "sim"])
def test_evaluation_waits_for_nothing(targets, place, make_handler, accelerator):
    handler, watch = make_handler(targets), Watch(accelerator, "test")
    handler.add_callback(fitkit.EMA(0.9))
    data = (place(X), place(targets))
    handler.fit(data, batch_size=70, progress_bar=False)
    values = handler.evaluate(data, batch_size=2, callbacks=[watch])
    assert (watch.num_batches, watch.seen) == (NUM_BATCHES, [])
    assert set(values) > {"loss"}
    reads = [kind for kind, _ in accelerator.waits if kind == "copy to the host"]
    assert len(reads) <= (1 if accelerator.float64 else 2 + 3 * len(values)), "once at the end"


def test_batches_of_all_sizes_wait_for_nothing(train):
    """The weights of a mean are numbers of the host; they are not copied to the device."""
    sizes = [1 + index % 3 for index in range(NUM_BATCHES)]
    x, y = torch.randn(sum(sizes), 4), torch.randint(3, (sum(sizes),))
    parts = [x.split(sizes), y.split(sizes)]
    batches = [(a.pin_memory(), b.pin_memory()) for a, b in zip(*parts, strict=True)]
    evaluating = fitkit.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model_of(evaluating).eval()
    )
    assert train(CLASSES, batches, evaluating) == []


@pytest.mark.parametrize("kind", ["classes", "labels", "one-hot"])
def test_metrics_that_keep_samples_wait_for_nothing(kind, make_handler, accelerator):
    handler, watch = make_handler(CLASSES), Watch(accelerator)
    one_hot = nn.functional.one_hot(CLASSES, 3).float()
    targets = CLASSES if kind == "classes" else one_hot
    for name, metric in (KEEPING if kind == "classes" else {}).items():
        handler.add_metric(name, metric)
    if kind != "classes":
        handler.parts.metrics.clear()
        multilabel = True if kind == "labels" else None
        handler.add_metric("a", fitkit.Accuracy(multilabel=multilabel))
    handler.fit((X, targets), batch_size=2, progress_bar=False, callbacks=[watch])
    assert (watch.num_batches, watch.seen) == (NUM_BATCHES, [])


def model_of(callback):
    return callback.model  # in evaluation mode batch norm takes batches of one sample


def test_a_tracker_reads_rows_in_bulk(train, tmp_path):
    logger = fitkit.TensorBoardLogger(tmp_path / "tb", every_n_batches=7, refresh_seconds=1e6)
    assert train(CLASSES, (X, CLASSES), logger, batch_size=2) == []


def test_a_callback_that_reads_is_found(train):
    """The counter counts: a callback that reads is found, and where it does it."""

    class Reading(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            if batch in (3, 4):
                logs["loss"]
            if batch == 5:
                logs.raw("loss").tolist()

    found = train(CLASSES, (X, CLASSES), Reading(), batch_size=2)
    kinds = [kind for kind, _ in found]
    assert kinds == ["_local_scalar_dense", "_local_scalar_dense", "copy to the host"]
    assert [line.split(":")[0] for _, line in found] == ["core/logs.py"] * 2 + [
        "test_no_waiting.py"
    ]
