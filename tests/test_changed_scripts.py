"""A script that is changed between two starts: each row of the table in docs/exact_resume.md.

Every start is a process of its own; the first one is killed with SIGKILL.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from changed_run import Starter

PAGE = Path(__file__).parents[1] / "docs" / "exact_resume.md"
CHANGES = {}


def row(title):
    """Register a test as the one of the row that begins with ``title``."""

    def register(function):
        CHANGES[title] = function
        return function

    return register


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The uninterrupted run, and the folders that starts have left that were killed in epoch 3."""
    root = tmp_path_factory.mktemp("changed")
    starter = Starter()
    start = starter.start
    whole = start(root / "whole", save_freq=5)
    assert whole.code == 0, whole.stderr
    killed = start(root / "killed", kill_at=14, save_freq=5)
    assert killed.code == -9
    at_epoch = start(root / "at_epoch", kill_at=14)
    assert at_epoch.code == -9
    yield root, whole, start
    starter.close()


class Runs:
    """Starts the changed script after the killed one."""

    def __init__(self, root, whole, start, folder):
        self._root = root
        self._start = start
        self._folder = folder
        self.whole = whole.result

    def begin(self, state, **script):
        """Another first start."""
        return self._start(self._folder / state, **script)

    def again(self, state="at_epoch", **changes):
        folder = self._folder / state
        if not folder.exists():
            shutil.copytree(self._root / state, folder)
        return self._start(folder, **changes)

    def files(self, state="at_epoch"):
        return sorted(path.name for path in (self._folder / state / "run").iterdir())


def passes(done):
    assert done.code == 0, done.stderr
    return done.result


def is_refused(done, *texts):
    assert done.code == 1
    for text in texts:
        assert text in done.stderr.splitlines()[-1] or text in done.stderr, (text, done.stderr)


@row("nothing")
def nothing(runs):
    for state in ("killed", "at_epoch"):
        done = runs.again(state, save_freq=5 if state == "killed" else "epoch")
        result = passes(done)
        for name in ("epochs", "history", "lr", "steps", "best", "wait", "count", "weight"):
            assert result[name] == runs.whole[name], name
        assert done.said.count("\n") <= 2, "one sentence"
        assert "fit resumes from run/" in done.said


@row("number of workers, progress bar, callbacks in another order")
def order(runs):
    result = passes(runs.again(callbacks=("count", "stop")))
    assert result["weight"] == runs.whole["weight"]
    assert (result["count"], result["best"]) == (24, runs.whole["best"])


@row("more epochs")
def more_epochs(runs):
    done = runs.again(epochs=6)
    assert passes(done)["epochs"] == list(range(6))
    assert "epochs: 4 -> 6" in done.said
    assert "2 of 6 epochs done" in done.said


@row("fewer epochs than are done")
def fewer_epochs(runs):
    done = runs.again(epochs=1)
    assert passes(done)["epochs"] == [0, 1]
    assert "nothing is left to do" in done.said


@row("an option of the optimizer")
def learning_rate(runs):
    done = runs.again(lr=0.02)
    result = passes(done)
    assert result["history"]["lr"] == [0.1, 0.1, 0.02, 0.02]
    assert "lr: 0.1 -> 0.02" in done.said


@row("the class of the optimizer")
def optimizer(runs):
    is_refused(runs.again(optimizer="Adam"), "SGD", "Adam", "run/2.pth")


@row("arguments of the scheduler, or another one")
def schedule(runs):
    def cosine(epochs):
        return ("CosineAnnealingLR", {"T_max": epochs})

    first = runs.begin("cosine", kill_at=14, schedule=cosine(4))
    assert first.code == -9
    done = runs.again("cosine", schedule=cosine(8), epochs=8)
    rates = passes(done)["history"]["lr"]
    whole = runs.begin("long", schedule=cosine(8), epochs=8).result["history"]["lr"]
    assert rates[2:] == pytest.approx(whole[2:])
    assert "T_max: 4 -> 8" in done.said
    added = runs.again(schedule=("ExponentialLR", {"gamma": 0.5}))
    assert passes(added)["history"]["lr"][2:] == pytest.approx([0.025, 0.0125])
    assert "ExponentialLR" in added.said


@row("the loss")
def loss(runs):
    done = runs.again(loss="L1Loss")
    assert passes(done)["history"]["loss"][:2] == runs.whole["history"]["loss"][:2]
    assert "loss: MSELoss" in done.said
    assert "L1Loss" in done.said


@row("the batch size")
def batch_size(runs):
    done = runs.again("killed", batch_size=8, save_freq=5)
    assert passes(done)["epochs"] == [0, 1, 2, 3]
    assert "batch size: 4 -> 8" in done.said


@row("the number of samples")
def samples(runs):
    is_refused(runs.again(samples=20), "24 samples", "20 samples", "resume='run/2.pth'")
    done = runs.again(samples=20, resume="run/2.pth")
    assert passes(done)["epochs"] == [0, 1, 2, 3]
    assert "training data: 24 samples -> 20 samples" in done.said


@row("the seed")
def seed(runs):
    is_refused(runs.again(seed=5), "is 0; in this script it is 5", "resume='run/2.pth'")
    done = runs.again(seed=5, resume="run/2.pth")
    assert passes(done)["weight"] == runs.whole["weight"], "the run keeps its seed"
    assert "seed: 0 -> 5 (the run keeps the seed with which it began)" in done.said


@row("precision, clipping, accumulation and other arguments of `fit`")
def options(runs):
    done = runs.again(precision="bf16", gradient_clipping_norm=0.5)
    passes(done)
    assert "precision: None -> bf16" in done.said
    assert "gradient clipping norm: None -> 0.5" in done.said


@row("more patience, after an early stop")
def patience(runs):
    stopped = passes(runs.begin("stopped", epochs=10, patience=2))
    assert (stopped["epochs"], stopped["wait"]) == ([0, 1, 2, 3, 4], 2)
    again = runs.again("stopped", epochs=10, patience=2)
    assert passes(again)["epochs"] == [0, 1, 2, 3, 4]
    assert "nothing is left to do. Training was stopped: EarlyStopping" in again.said
    done = runs.again("stopped", epochs=10, patience=5)
    result = passes(done)
    assert result["epochs"] == list(range(10))
    assert result["best"] == 0.4
    assert result["stopped"] is None
    assert "patience: 2 -> 5" in done.said


@row("the monitored value of a callback")
def monitor(runs):
    done = runs.again(monitor="gain")
    result = passes(done)
    assert result["best"] == 2.0, "its own first value after the resume"
    assert "score" in done.said
    assert "gain" in done.said


@row("the file name of a saver")
def file_name(runs):
    done = runs.again(saver="run/other-{epoch}.pth")
    assert passes(done)["files"] == ["other-3.pth", "other-4.pth"]
    assert runs.files() == ["1.pth", "2.pth", "other-3.pth", "other-4.pth"]
    assert "{epoch}.pth" in done.said


@row("a callback is added")
def added(runs):
    done = runs.again(callbacks=("stop", "count", "timer"))
    assert passes(done)["count"] == 24
    assert "Timer" in done.said


@row("a callback is left out")
def left_out(runs):
    done = runs.again(callbacks=("stop",))
    passes(done)
    assert "Count" in done.said
    back = runs.again(callbacks=("stop", "count"), epochs=5)
    assert passes(back)["count"] == 12 + 6, "its state was kept meanwhile"


@row("a metric, at the end of an epoch")
def metric(runs):
    result = passes(runs.again(metric=True))
    assert [value == value for value in result["history"]["mae"]] == [False, False, True, True]


@row("a metric, in the middle of an epoch")
def metric_in_the_middle(runs):
    is_refused(runs.again("killed", metric=True, save_freq=5), "mae", "none")


@row("EMA is left out")
def averages(runs):
    first = runs.begin("averaged", kill_at=14, ema_decay=0.9)
    assert first.code == -9
    done = runs.again("averaged")
    assert passes(done)["averaged"] is False
    assert "average" in done.said


@row("other shapes of the model")
def width(runs):
    is_refused(runs.again(width=5), "'weight' has shape (1, 3)", "(1, 5)", "run/2.pth")


@row("the folder is moved or renamed")
def moved(runs):
    runs.again(epochs=2)
    shutil.move(runs._folder / "at_epoch", runs._folder / "elsewhere")
    result = passes(runs.again("elsewhere"))
    assert result["weight"] == runs.whole["weight"]
    assert result["files"] == ["1.pth", "2.pth", "3.pth", "4.pth"]


@row("an earlier file is named")
def earlier(runs):
    passes(runs.again())
    branch = passes(runs.again(resume="run/1.pth", epochs=3, lr=0.01))
    assert branch["history"]["lr"] == [0.1, 0.01, 0.01]
    done = runs.again(lr=0.01)
    assert "resumes from run/3.pth" in done.said
    assert passes(done)["history"]["lr"] == [0.1, 0.01, 0.01, 0.01]


@pytest.mark.parametrize("title", CHANGES)
def test_a_change_between_two_starts(runs, tmp_path, title):
    CHANGES[title](Runs(*runs, tmp_path))


def test_the_page_has_a_row_for_each_change():
    text = PAGE.read_text(encoding="utf-8").partition("<!-- changes: begin -->")[2]
    rows = text.partition("<!-- changes: end -->")[0].strip().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in rows] == list(CHANGES)


def test_the_run_of_these_tests_is_deterministic(runs):
    torch.testing.assert_close(runs[1].result["steps"], 24)
