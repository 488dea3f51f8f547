"""Which checkpoint ``fit(resume=...)`` continues from, and what it then changes."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from fitkit import (
    Callback,
    CheckpointError,
    MeanAbsoluteError,
    ModelCheckpoint,
    NNHandler,
    Preempted,
)
from fitkit.checkpointing.format import schema
from fitkit.data.spec import DataSpec
from fitkit.distributed.world import World
from fitkit.training.options import FitOptions
from fitkit.training.resume import resume
from fitkit.training.run_config import run_config

DATA = (torch.ones(4, 2), torch.zeros(4, 1))


def make():
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file after each of two calls of ``fit``, of two epochs each."""
    folder = tmp_path_factory.mktemp("runs")
    handler = make()
    for call in (1, 2):
        handler.fit(DATA, epochs=2, progress_bar=False)
        (folder / str(call)).mkdir()
        handler.save(folder / str(call) / "a.pth")
    return folder


def ask(handler, where, in_memory=None):
    options = FitOptions(resume=where)
    config = run_config(handler, options, DataSpec(DATA), {})
    resumed = resume(handler, options, config, in_memory)
    return (resumed.continues, resumed.is_finished)


@pytest.mark.parametrize("where", [None, False, "missing", "empty"])
def test_nothing_to_resume_from(tmp_path, where):
    (tmp_path / "empty").mkdir()
    handler = make()
    where = tmp_path / where if isinstance(where, str) else where
    assert ask(handler, where) == (False, False)
    assert handler.state.epoch == 0
    assert handler.saves.protected is None


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize(
    ("saved", "calls", "from_folder", "from_file", "epoch"),
    [
        (1, 0, (True, False), (True, False), 2),
        (2, 1, (True, False), (True, False), 4),
        (2, 0, (False, True), (True, False), 2),  # the first call of the script was finished
        (1, 1, (False, False), (True, False), 0),  # the second call had not begun
    ],
)
def test_which_call_a_checkpoint_belongs_to(
    files, is_file, saved, calls, from_folder, from_file, epoch
):
    handler = make()
    handler.state.call = calls
    where = files / str(saved) / "a.pth" if is_file else str(files / str(saved))
    expected = from_file if is_file else from_folder
    assert ask(handler, where) == expected
    assert handler.state.epoch == (2 * saved if is_file else epoch)


def test_the_file_is_protected(files):
    handler = make()
    ask(handler, files / "1")
    assert handler.saves.protected == (files / "1" / "a.pth").resolve()


def test_folders_of_savers_below_the_given_one_are_searched(files):
    handler = make()
    assert ask(handler, files) == (False, False)  # files are one folder below
    for call in (1, 2):
        handler.add_callback(ModelCheckpoint(files / str(call) / "a.pth", monitor="loss"))
    assert ask(handler, files) == (False, True), "the file of the second call was found"
    assert handler.state.epoch == 2


def test_a_damaged_file_is_a_warning(files, tmp_path):
    (tmp_path / "a.pth").write_bytes((files / "1" / "a.pth").read_bytes()[:-200])
    handler = make()
    with pytest.warns(UserWarning, match=r"passed over while looking for a checkpoint: .*a\.pth"):
        assert ask(handler, tmp_path) == (False, False)


def altered(files, tmp_path, **changes):
    """A file with other progress."""
    handler = make()
    ask(handler, files / "1" / "a.pth")
    for name, value in changes.items():
        setattr(handler.state, name, value)
    handler.save(tmp_path / "b.pth")
    return tmp_path / "b.pth"


def test_a_file_from_the_middle_of_a_step_is_a_warning(files, tmp_path):
    path = altered(files, tmp_path, mid_step=True)
    with pytest.warns(UserWarning, match=r"b\.pth' was saved in the middle of a training step"):
        assert ask(make(), path) == (True, False)


@pytest.mark.parametrize("is_final", [True, False])
def test_only_a_final_stop_holds_after_a_resume(files, tmp_path, is_final):
    path = altered(files, tmp_path, stop_reason="enough", stop_is_final=is_final)
    handler = make()
    ask(handler, path)
    assert handler.state.stopping is is_final


def test_ranks_that_see_other_files(files):
    class Other(World):
        def broadcast(self, value, source=0):
            return (9, *value[1:])

    handler = make()
    handler.world = Other()
    with pytest.raises(CheckpointError, match=r"from position \(1, 2, .*rank 0 from \(9, 2"):
        ask(handler, files / "1" / "a.pth")
    assert handler.state.epoch == 0


def test_a_file_of_a_newer_format_is_an_error(files, monkeypatch):
    monkeypatch.setattr(schema, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="upgrade fitkit"):
        ask(make(), files / "1" / "a.pth")


# ---- other metrics ------------------------------------------------------------------------------


class Total:
    def __init__(self):
        self.total = 0.0

    reset = __init__

    def update(self, outputs, targets):
        self.total += float(outputs.sum())

    def compute(self):
        return self.total


def with_metrics(handler, names):
    handler.parts.metrics.clear()
    for name in names:
        handler.add_metric(name, Total() if name.startswith("t") else MeanAbsoluteError())
    return handler


@pytest.mark.parametrize("before", [["a", "total"], ["a"], []])
@pytest.mark.parametrize("after", [["a", "total"], ["b", "t"], []])
@pytest.mark.parametrize("how", ["fit", "resume", "load"])
def test_metrics_may_change_after_the_end_of_an_epoch(tmp_path, before, after, how):
    handler = with_metrics(make(), before)
    common = {"validation_data": DATA, "progress_bar": False, "batch_size": 2}
    handler.fit(DATA, epochs=1, callbacks=[ModelCheckpoint(tmp_path / "last.pth")], **common)
    options = {"epochs": 1}
    if how == "load":
        handler = NNHandler.load(tmp_path / "last.pth")
    elif how == "resume":
        handler, options = make(), {"epochs": 2, "resume": tmp_path}
    options["callbacks"] = [ModelCheckpoint(tmp_path / "last.pth")]
    history = with_metrics(handler, after).fit(DATA, **options, **common).history
    assert len(history["loss"]) == 2
    for name in after:
        assert history[name][-1] == history[name][-1] != 0.0
        assert len(history[f"val_{name}"]) == 2


class Kill(Callback):
    def __init__(self, hook):
        setattr(self, hook, self.kill)

    def kill(self, batch, logs):
        if batch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_batch_end"])
def test_metrics_may_not_change_in_the_middle_of_an_epoch(tmp_path, hook):
    common = {"validation_data": DATA, "progress_bar": False, "batch_size": 1, "epochs": 1}

    def run(*callbacks, metrics=("a", "total"), resume=None):
        callbacks = [*callbacks, ModelCheckpoint(tmp_path / "last.pth")]
        handler = with_metrics(make(), metrics)
        return handler.fit(DATA, callbacks=callbacks, resume=resume, **common).history

    whole = run()
    (tmp_path / "last.pth").unlink()
    with pytest.raises(Preempted):
        run(Kill(hook))
    with pytest.raises(CheckpointError, match="interrupted in the middle with the metrics 'a', 't"):
        run(metrics=["a"], resume=tmp_path)
    assert run(resume=tmp_path) == whole
