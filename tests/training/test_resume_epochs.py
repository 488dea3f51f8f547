"""Runs resumed at the ends of epochs, in other processes, by ``load``, and after the last epoch."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit.checkpointing.catalog import latest

pytestmark = pytest.mark.no_cover

SCRIPT = Path(__file__).parents[1] / "scripts" / "epochs_run.py"
TIMES = ("samples_per_second", "batches_per_second", "waiting_share", "elapsed_seconds", "seconds")
TIMES = (*TIMES, "waiting_seconds")


@pytest.fixture(scope="module")
def script():
    """The script as a module of a name that its checkpoints can be loaded by."""
    spec = importlib.util.spec_from_file_location("epochs_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["epochs_run"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["epochs_run"]


def differences(left, right, path="state"):
    """Every leaf that differs, except times."""
    if isinstance(left, dict) and isinstance(right, dict):
        found = [f"{path}: keys {set(left) ^ set(right)}"] if set(left) != set(right) else []
        for key in left.keys() & right.keys():
            if key not in TIMES and key not in (
                "text",
                "identity",
                "num_samples",
                "samples_before",
            ):
                found += differences(left[key], right[key], f"{path}.{key}")
        return found
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        found = [] if len(left) == len(right) else [f"{path}: {len(left)} and {len(right)} items"]
        for number, (one, other) in enumerate(zip(left, right, strict=False)):
            found += differences(one, other, f"{path}[{number}]")
        return found
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        is_same = left.dtype == right.dtype and torch.equal(left, right)
    else:
        is_nan = isinstance(left, float) and math.isnan(left) and math.isnan(right)
        is_same = type(left) is type(right) and (left == right or is_nan)
    return [] if is_same else [f"{path}: {left!r} and {right!r}"]


def rows(folder: Path):
    """The logs of a run without times; everything else as text."""
    with (folder / "log.csv").open() as file:
        table = [[v for k, v in row.items() if k not in TIMES] for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return table, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def names(folder: Path):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(folder: Path):
    """Every file except the HTML page, which contains the run's folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"]
    return {path: path.read_bytes() for path in paths}


class CopyAtEachEpoch(fitkit.Callback):
    """The run's folder as it is when all files of an epoch's end are durable."""

    def __init__(self, folder: Path, boundaries: Path):
        self.folder, self.boundaries, self.copied = folder, boundaries, 0

    def on_epoch_begin(self, epoch, logs):
        self.copy()

    def on_train_end(self, logs):
        self.copy()

    def copy(self):
        if self.folder.exists():
            shutil.copytree(self.folder, self.boundaries / f"after_{self.copied}.pth")
        self.copied += 1


@pytest.fixture(scope="module")
def uninterrupted(script, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    copier = CopyAtEachEpoch(root / "run", root / "boundaries")
    (root / "boundaries").mkdir()
    handler = script.train(root / "run", more=[copier])
    return root, handler


def test_the_run_tries_what_it_should(script, uninterrupted):
    root, handler = uninterrupted
    assert len(list((root / "boundaries").iterdir())) >= 5
    assert handler.history.epoch == list(range(len(handler.history.epoch)))
    missing = {
        name
        for name, kind in vars(fitkit).items()
        if isinstance(kind, type) and issubclass(kind, fitkit.Callback)
    } - {
        type(callback).__name__
        for callback in (*script.make_callbacks(root), *handler.callbacks, fitkit.ProgressBar())
    }
    loggers_of_others = {"TensorBoardLogger", "MLflowLogger", "WandbLogger"}
    assert missing - loggers_of_others == {"Callback", "PredictionWriter"}  # no event of fit


@pytest.mark.slow
def test_a_new_process_seeded_differently_ends_the_same_from_every_epoch(script, uninterrupted):
    root, handler = uninterrupted
    (root / "ends").mkdir()
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += (
        f"import epochs_run, pathlib; epochs_run.main(pathlib.Path({str(root / 'boundaries')!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    end = handler.get_state_dict()
    for boundary in sorted((root / "boundaries").iterdir()):
        state = torch.load(root / "ends" / boundary.name, weights_only=True)
        assert differences(end, state) == [], boundary.name
        resumed = root / "resumed" / boundary.name
        assert names(resumed) == names(root / "run"), boundary.name
        assert rows(resumed) == rows(root / "run"), boundary.name
        for path in root.joinpath("run").rglob("*.pth"):
            left = torch.load(path, weights_only=True)
            right = torch.load(resumed / path.relative_to(root / "run"), weights_only=True)
            assert differences(left, right) == [], f"{boundary.name}: {path.name}"


def test_resuming_a_finished_run_changes_nothing(script, uninterrupted, tmp_path):
    root, handler = uninterrupted
    folder = tmp_path / "run"
    for resume in (True, folder, folder / "last.pth"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / "run", folder)
        before = contents(folder)
        again = script.train(folder, resume, weights=99)
        assert before == contents(folder)
        assert differences(handler.get_state_dict(), again.get_state_dict()) == []


# ---- small runs ---------------------------------------------------------------------------------

DATA = (torch.randn(22, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(22, 1))


def small_handler(weights=1, lr=0.05, seed=1):
    """``weights``: what a resume has to replace by the weights of the checkpoint."""
    handler = fitkit.NNHandler(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1)), seed=seed
    )
    with torch.no_grad():  # a ready module is not seeded by the handler
        for number, parameter in enumerate(handler.module.parameters(), weights):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) + number).view_as(parameter))
    handler.set_optimizer(torch.optim.Adam, lr=lr)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit_small(handler, epochs, *callbacks, **options):
    options = {"batch_size": 4, "validation_split": 0.2, "progress_bar": False, **options}
    return handler.fit(DATA, epochs=epochs, callbacks=callbacks, **options)


class Dies(fitkit.Callback):
    order = 200

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs):
        if epoch == self.epoch:
            raise RuntimeError("died")


def weights_of(handler):
    return {name: value.clone() for name, value in handler.module.state_dict().items()}


def test_a_run_can_be_extended(tmp_path):
    long, short, more = small_handler(), small_handler(), small_handler(weights=9)
    fit_small(long, 5, fitkit.ModelCheckpoint(tmp_path / "a" / "last.pth"))
    fit_small(short, 2, fitkit.ModelCheckpoint(tmp_path / "b" / "last.pth"))
    history = fit_small(more, 5, fitkit.ModelCheckpoint(tmp_path / "b" / "last.pth"), resume=True)
    assert history.epoch == [0, 1, 2, 3, 4]
    assert differences(long.get_state_dict(), more.get_state_dict()) == []


def test_fewer_epochs_than_are_done_train_nothing(tmp_path):
    handler, again = small_handler(), small_handler()
    fit_small(handler, 4, fitkit.ModelCheckpoint(tmp_path / "last.pth"))
    history = fit_small(again, 2, fitkit.ModelCheckpoint(tmp_path / "last.pth"), resume=True)
    assert history.epoch == [0, 1, 2, 3]
    assert differences(weights_of(handler), weights_of(again)) == []


def stopping():
    return fitkit.EarlyStopping("val_loss", patience=1, restore_best_weights=True, mode="max")


def test_an_early_stopped_run_stays_stopped(tmp_path):
    saver = tmp_path / "epoch_{epoch}.pth"
    handler, again = small_handler(), small_handler(weights=3)
    first = stopping()
    fit_small(handler, 9, fitkit.ModelCheckpoint(saver), first)
    assert 1 < len(handler.history.epoch) < 9
    second = stopping()
    fit_small(again, 9, fitkit.ModelCheckpoint(saver), second, resume=True)
    assert again.history.epoch == handler.history.epoch
    assert second.stopped_epoch == first.stopped_epoch is not None
    assert again.state.stop_reason == handler.state.stop_reason
    assert differences(handler.get_state_dict(), again.get_state_dict()) == []


def test_best_weights_from_before_an_interruption_are_restored(tmp_path):
    """The best weights are from before the restart, and training got worse after it."""
    saver = tmp_path / "epoch_{epoch}.pth"
    whole, broken, again = small_handler(), small_handler(), small_handler(weights=3)
    stop = [fitkit.EarlyStopping("val_loss", 0, 3, "max", None, True) for _ in range(3)]
    fit_small(whole, 9, stop[0])
    assert len(whole.history.epoch) == stop[0].best_epoch + 4
    with pytest.raises(RuntimeError, match="died"):
        fit_small(broken, 9, stop[1], fitkit.ModelCheckpoint(saver), Dies(stop[0].best_epoch + 2))
    fit_small(again, 9, stop[2], fitkit.ModelCheckpoint(saver), resume=True)
    assert stop[2].best_epoch == stop[0].best_epoch
    assert differences(weights_of(whole), weights_of(again)) == []


@pytest.mark.parametrize("killed_in", [None, 0, 1, 2, 3, 4])
def test_two_fits_of_one_script(tmp_path, killed_in):
    """The first call was complete when the second was interrupted; each is continued."""

    def run(weights, *more):
        handler = small_handler(weights)
        handler.auto_save(1, tmp_path, "at_{epoch}")
        resume = None if killed_in is None else tmp_path
        fit_small(handler, 2, *more, resume=resume, batch_size=4)
        fit_small(handler, 3, *more, resume=resume, batch_size=6)
        return handler

    expected = small_handler()
    expected.auto_save(1, tmp_path / "expected", "at_{epoch}")
    fit_small(expected, 2, batch_size=4)
    fit_small(expected, 3, batch_size=6)
    if killed_in is not None:
        with pytest.raises(RuntimeError, match="died"):
            run(1, Dies(killed_in))
    handler = run(1)
    assert handler.history.epoch == [0, 1, 2, 3, 4]
    assert differences(expected.get_state_dict(), handler.get_state_dict()) == []
    if killed_in is not None:
        assert differences(handler.get_state_dict(), run(7).get_state_dict()) == []


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n % 4 == 1 else pytest.mark.slow) for n in range(1, 20)]
)
def test_two_fits_of_one_script_cut_at_any_batch(tmp_path, number, two_fits):
    expected, folder = two_fits
    assert len(list(folder.glob("step_*.pth"))) == 19
    (tmp_path / "run").mkdir()
    shutil.copy(folder / f"step_{number:02d}.pth", tmp_path / "run")
    handler = small_handler(weights=50 + number)
    two_calls(handler, tmp_path / "run", resume=tmp_path / "run")
    assert differences(expected, handler.get_state_dict()) == []


def two_calls(handler, folder, resume=None):
    handler.add_callback(fitkit.ModelCheckpoint(folder / "step_{global_step:02d}.pth", save_freq=1))
    for epochs, size in ((2, 4), (3, 6)):
        fit_small(handler, epochs, resume=resume, batch_size=size, gradient_accumulation_steps=2)


@pytest.fixture(scope="module")
def two_fits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    handler = small_handler()
    two_calls(handler, folder)
    return handler.get_state_dict(), folder


def test_from_nothing_but_the_file(tmp_path):
    """As the seed documents show: load, give it the data, train on."""

    def handler_of_class():
        handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=1, seed=1)
        handler.set_optimizer(torch.optim.AdamW, lr=0.05, betas=(0.8, 0.9))
        handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5)
        handler.set_loss_fn(nn.HuberLoss(delta=0.5))
        return handler

    whole, part = handler_of_class(), handler_of_class()
    fit_small(whole, 5)
    fit_small(part, 2, ema_decay=0.0)
    part.save(tmp_path / "part.pth")
    loaded = fitkit.NNHandler.load(tmp_path / "part.pth")
    assert len(loaded.train_losses) == 2
    fit_small(loaded, 3)
    assert loaded.history.epoch == [0, 1, 2, 3, 4]
    assert differences(weights_of(whole), weights_of(loaded)) == []
    assert differences(whole.history.history, loaded.history.history) == []
    assert differences(whole.optimizer.state_dict(), loaded.optimizer.state_dict()) == []


def test_without_a_seed_the_streams_of_the_program_go_on(tmp_path):
    def run(name, resume, *more):
        handler, saver = small_handler(seed=None), fitkit.ModelCheckpoint(tmp_path / name / "a.pth")
        fit_small(handler, 4, saver, *more, resume=resume)
        return handler

    torch.manual_seed(7)
    whole = run("whole", None)
    after = torch.rand(())
    torch.manual_seed(7)
    with pytest.raises(RuntimeError, match="died"):
        run("again", None, Dies(2))
    torch.manual_seed(1234)
    resumed = run("again", True)
    assert differences(whole.get_state_dict(), resumed.get_state_dict()) == []
    assert torch.rand(()) == after


def test_a_damaged_newest_file_is_passed_over_and_the_end_is_the_same(tmp_path):
    saver = tmp_path / "epoch_{epoch}.pth"
    whole, again = small_handler(), small_handler(weights=4)
    fit_small(whole, 4, fitkit.ModelCheckpoint(saver))
    for epoch in (3, 4):
        path = tmp_path / f"epoch_{epoch}.pth"
        data = bytearray(path.read_bytes())
        for position in range(len(data) // 2, len(data) // 2 + 128):  # more than padding
            data[position] ^= 4
        path.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_small(again, 4, fitkit.ModelCheckpoint(saver), resume=True)
    said = " ".join(str(warning.message) for warning in caught)
    assert "epoch_3.pth" in said
    assert "epoch_4.pth" in said
    assert differences(whole.get_state_dict(), again.get_state_dict()) == []
    assert latest.find_latest([tmp_path]).skipped == []


def test_resume_true_in_nested_folders(tmp_path):
    saver = tmp_path / "run_{epoch}" / "{global_step}" / "m.pth"
    whole, again = small_handler(), small_handler(weights=4)
    fit_small(whole, 3, fitkit.ModelCheckpoint(saver))
    began = []
    watch = fitkit.LambdaCallback(on_epoch_begin=lambda epoch, logs: began.append(epoch))
    fit_small(again, 4, fitkit.ModelCheckpoint(saver), watch, resume=True)
    assert began == [3]


def test_a_folder_that_does_not_exist_is_a_fresh_start_and_a_file_an_error(tmp_path):
    handler = small_handler()
    fit_small(handler, 1, resume=tmp_path / "not" / "yet")
    assert handler.history.epoch == [0]
    assert not (tmp_path / "not").exists()
    for name in ("gone.pth", "gone.pt", "gone.ckpt"):
        with pytest.raises(fitkit.CheckpointNotFoundError, match="no such file"):
            fit_small(small_handler(), 1, resume=tmp_path / name)
    with pytest.raises(fitkit.ConfigurationError, match="none is attached"):
        fit_small(small_handler(), 1, resume=True)
    with pytest.raises(fitkit.ConfigurationError, match="must be a file, a folder"):
        fit_small(small_handler(), 1, resume=3)
