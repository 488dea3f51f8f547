"""Every exported callback against every boundary; the table in docs/exact_resume.md is made here.

``FITKIT_WRITE_DOCS=1 pytest tests/test_exact_resume_callbacks.py`` writes it anew.
"""

import inspect
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit.testing import assert_resumes_exactly

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fast_scratch", "default_mlflow_store")]

PAGE = Path(__file__).parent.parent / "docs" / "exact_resume.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

# How each callback is attached, and which leaves are wall time.
CALLBACKS = {
    "AutoSaver": (lambda: fitkit.AutoSaver(1, "run", overwrite_last_saved=True), ()),
    "CSVLogger": (lambda: fitkit.CSVLogger("log.csv"), ()),
    "ConsoleLogger": (fitkit.ConsoleLogger, ()),
    "EMA": (lambda: fitkit.EMA(0.8), ()),
    "EarlyStopping": (
        lambda: fitkit.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        (),
    ),
    "GradientAccumulationScheduler": (
        lambda: fitkit.GradientAccumulationScheduler({0: 2, 1: 3}),
        (),
    ),
    "HTMLReport": (lambda: fitkit.HTMLReport("report.html"), ()),
    "History": (fitkit.History, ()),
    "JSONLinesLogger": (lambda: fitkit.JSONLinesLogger("log.jsonl"), ()),
    "LambdaCallback": (lambda: fitkit.LambdaCallback(on_epoch_end=lambda epoch, logs: None), ()),
    "LearningRateMonitor": (fitkit.LearningRateMonitor, ()),
    "LearningRateScheduler": (lambda: fitkit.LearningRateScheduler(lambda epoch, lr: lr * 0.5), ()),
    "MLflowLogger": (lambda: fitkit.MLflowLogger("fitkit", every_n_batches=1), ()),
    "ModelCheckpoint": (
        lambda: fitkit.ModelCheckpoint(
            "run/{global_step:03d}.pth", monitor="loss", save_freq=1, max_to_keep=2
        ),
        (),
    ),
    "PredictionWriter": (lambda: fitkit.PredictionWriter("predictions"), ()),
    # a trace is nothing but times
    "Profiler": (lambda: fitkit.Profiler("trace.json", warmup=1, active=4), ("*trace.json*",)),
    "ProgressBar": (fitkit.ProgressBar, ()),
    "ReduceLROnPlateau": (lambda: fitkit.ReduceLROnPlateau("val_loss", patience=0), ()),
    "TensorBoardLogger": (
        lambda: fitkit.TensorBoardLogger("tb", every_n_batches=1),
        ("*files*tb/*",),  # full of times; test_tracker.py compares what they hold
    ),
    "TerminateOnNaN": (fitkit.TerminateOnNaN, ()),
    "ThroughputMonitor": (
        fitkit.ThroughputMonitor,
        ("*per_second*", "*seconds*", "*waiting_share*"),
    ),
    "Timer": (lambda: fitkit.Timer(3600.0), ("*elapsed*", "*seconds*")),
    "WandbLogger": (
        lambda: fitkit.WandbLogger(mode="offline", dir=".", every_n_batches=1),
        ("*files*wandb/*",),
    ),
}

# The columns of the table: which boundaries belong to each.
COLUMNS = {
    "before the first batch": lambda label: label.startswith("on_epoch_begin"),
    "after each training batch": lambda label: label.startswith("on_train_batch_end"),
    "inside a window": lambda label: label.startswith("on_train_batch_end") and "batch 0" in label,
    "before validation": lambda label: label.startswith("on_test_begin"),
    "inside validation": lambda label: label.startswith("on_test_batch_end"),
    "after validation": lambda label: label.startswith("on_test_end"),
    "after the epoch's hooks": lambda label: label == "on_epoch_end, epoch 0",
    "run finished": lambda label: label == "on_epoch_end, epoch 1",
}


def exported():
    values = {name: getattr(fitkit, name) for name in fitkit.__all__}
    return sorted(
        name
        for name, value in values.items()
        if inspect.isclass(value)
        and issubclass(value, fitkit.Callback)
        and value is not fitkit.Callback
    )


DEVICE = "cpu"


def make_handler():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    handler = fitkit.NNHandler(model, DEVICE, seed=3)
    handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    handler.set_loss_fn(nn.MSELoss())
    inputs = torch.arange(30, dtype=torch.float32).reshape(10, 3) / 30
    handler.set_train_loader((inputs, inputs.sum(1, keepdim=True)), batch_size=4)
    handler.set_val_loader((inputs[:6], inputs[:6, :1]), batch_size=3)
    return handler


def test_each_exported_callback_is_tried():
    assert sorted(CALLBACKS) == exported()


ROWS = {}
# On the CPU each; on an accelerator those that keep or change tensors of it, others with -m slow.
KEEP_TENSORS = {"EMA", "EarlyStopping", "ModelCheckpoint", "TensorBoardLogger"}
ACCELERATORS = ("accelerator", "accelerator without float64")


def cases():
    for name in sorted(CALLBACKS):
        yield name, "cpu"
        marks = () if name in KEEP_TENSORS else pytest.mark.slow
        yield pytest.param(name, ACCELERATORS[1], marks=marks)
        yield pytest.param(name, ACCELERATORS[0], marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "device"), list(cases()), indirect=["device"])
def test_it_resumes_exactly_at_every_boundary(name, device, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", device)
    make, ignore = CALLBACKS[name]
    tried = assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: [make()],
        ignore=ignore,
        epochs=2,
        gradient_accumulation_steps=2,
    )
    assert len(tried) == 18
    ROWS[name] = [sum(map(belongs, tried)) for belongs in COLUMNS.values()]


def test_the_table_in_the_documentation_is_what_was_measured():
    if set(ROWS) != set(CALLBACKS):
        pytest.fail("run this file as a whole: the table needs every callback")
    lines = [
        f"| callback | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
        *(
            f"| `{name}` | {' | '.join(f'{count} of {count}' for count in ROWS[name])} |"
            for name in sorted(ROWS)
        ),
    ]
    table = "\n".join(lines)
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    if os.environ.get("FITKIT_WRITE_DOCS"):
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
        return
    assert rest.split(END)[0].strip() == table
