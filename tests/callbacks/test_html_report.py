"""HTMLReport: a page that is right at every moment, and costs training nothing but time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fitkit
from fitkit import ConfigurationError, Preempted
from fitkit.reporting.gather import gather_folder


def make_handler():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    data = (torch.ones(8, 2), torch.zeros(8, 1))
    handler.set_train_loader(data, batch_size=2)
    handler.set_val_loader(data, batch_size=8)
    return handler


def shown(path="runs/report.html"):
    page = Path(path).read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def run(*callbacks, epochs=3, **options):
    handler = make_handler()
    report = fitkit.HTMLReport("runs/report.html", refresh_seconds=0)
    handler.fit(epochs=epochs, callbacks=[*callbacks, report], progress_bar=False, **options)
    return report


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Look(fitkit.Callback):
    """Keeps what the page shows when an event is over."""

    order = 10_000

    def __init__(self):
        self.begin, self.epochs = None, []

    def on_train_begin(self, logs):
        self.begin = shown()

    def on_epoch_end(self, epoch, logs):
        self.epochs.append(shown())


def test_the_page_is_there_from_the_beginning_and_reloads_until_the_end():
    look = Look()
    run(look)
    assert look.begin["status"] == {
        "running": True,
        "text": None,
        "last_epoch": 3,
        "reload_seconds": 1.0,
    }
    assert [data["epochs"] for data in look.epochs] == [[1], [1, 2], [1, 2, 3]]
    assert all(data["status"]["running"] for data in look.epochs)
    assert shown()["status"]["running"] is False
    assert shown()["status"]["reload_seconds"] is None
    assert set(shown()["columns"]) == {"loss", "val_loss", "lr"}


def test_it_is_written_as_often_as_asked():
    look = Look()
    handler = make_handler()
    report = fitkit.HTMLReport("runs/report.html", every_n_epochs=2, refresh_seconds=0)
    handler.fit(epochs=5, callbacks=[report, look], progress_bar=False)
    assert [len(data["epochs"]) for data in look.epochs] == [0, 2, 2, 4, 4]
    assert len(shown()["epochs"]) == 5


def test_between_two_writings_lies_some_time():
    look = Look()
    report = fitkit.HTMLReport("runs/report.html", refresh_seconds=3600)
    make_handler().fit(epochs=3, callbacks=[report, look], progress_bar=False)
    assert [len(data["epochs"]) for data in look.epochs] == [0, 0, 0]
    assert look.epochs[0]["status"]["reload_seconds"] == 3600
    assert len(shown()["epochs"]) == 3


def test_every_save_is_noted_with_its_moment():
    report = run(
        fitkit.ModelCheckpoint("runs/{global_step:03d}.pth", save_freq=3, max_to_keep=2),
        fitkit.ModelCheckpoint("runs/best/b.pth", monitor="val_loss", save_best_only=True),
    )
    by_step = [one for one in report.saves if one["name"] != "best/b.pth"]
    assert [(one["name"], one["step"], one["epoch"]) for one in by_step] == [
        ("003.pth", 3, 0.75),
        ("006.pth", 6, 1.5),
        ("009.pth", 9, 2.25),
        ("012.pth", 12, 3.0),
    ]
    best = [one for one in report.saves if one["name"] == "best/b.pth"]
    assert [(one["step"], one["is_best"]) for one in best] == [(4, True), (8, True), (12, True)]
    rows = {row["name"]: row for row in shown()["checkpoints"]}
    assert set(rows) == {"009.pth", "012.pth", "best/b.pth"}
    assert rows["best/b.pth"]["marks"] == ["best", "last"]


def test_what_is_noted_is_bounded(monkeypatch):
    monkeypatch.setattr("fitkit.callbacks.html_report._MOST_SAVES", 5)
    saver = fitkit.ModelCheckpoint("runs/{global_step}.pth", save_freq=1, max_to_keep=1)
    assert [one["step"] for one in run(saver).saves] == [8, 9, 10, 11, 12]


def test_the_checkpoint_tells_a_later_report_what_was_noted():
    run(fitkit.ModelCheckpoint("runs/{epoch}.pth", max_to_keep=1), epochs=4)
    data = gather_folder(Path("runs"))
    marks = next(one["marks"] for one in data["lanes"] if one["label"] == "Checkpoints")
    assert [mark["epoch"] for mark in marks] == [1, 2, 3, 4]
    assert [row["name"] for row in data["checkpoints"]] == ["4.pth"]
    fit = next(one["rows"] for one in data["sections"] if one["title"] == "Fit")
    assert ["validate_every", "1"] in fit
    assert ["device", "cpu"] in data["environment"]


class Breaks(fitkit.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, batch, logs):
        raise self.error


def test_how_a_run_ended_is_told():
    run(Breaks(KeyboardInterrupt()))
    assert shown()["status"]["text"] == "interrupted"
    with pytest.raises(RuntimeError, match="no more"):
        run(Breaks(RuntimeError("no more")))
    assert shown()["status"]["text"] == "ended by RuntimeError: no more"
    with pytest.raises(SystemExit):
        run(Breaks(Preempted(15)))
    assert shown()["status"]["text"] == "ended by signal 15; it can be resumed"
    assert shown()["status"]["running"] is False
    run(fitkit.EarlyStopping("val_loss", mode="max", patience=1), epochs=9)
    assert shown()["status"]["text"].startswith("EarlyStopping: 'val_loss' did not improve")


def test_a_page_that_cannot_be_written_does_not_end_training(tmp_path):
    Path("runs").write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="the report was not written"):
        report = run()
    assert report.handler.state.epoch == 3


def test_only_the_main_process_writes(drive):
    driver = drive(fitkit.HTMLReport("runs/report.html", refresh_seconds=0))
    driver.handler.world = SimpleNamespace(is_main=False, size=2)
    driver.handler.callbacks, driver.handler.device = driver.callbacks, torch.device("cpu")
    driver.fit([1.0, 0.5])
    assert driver.callbacks[0].facts["environment"]["processes"] == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": ""}, "path must be"),
        ({"path": 3}, "path must be"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"refresh_seconds": -1}, "at least 0"),
        ({"refresh_seconds": float("nan")}, "refresh_seconds"),
        ({"refresh_seconds": True}, "refresh_seconds"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        fitkit.HTMLReport(**arguments)
