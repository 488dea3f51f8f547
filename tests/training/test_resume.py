"""Which checkpoint ``fit(resume=...)`` continues from, and what it then changes."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, ModelCheckpoint, NNHandler
from fitkit.checkpointing.format import schema
from fitkit.distributed.world import World
from fitkit.training.options import FitOptions
from fitkit.training.resume import resume

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


def ask(handler, where):
    return resume(handler, FitOptions(resume=where))


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
    ("saved", "calls_made", "from_folder", "from_file"),
    [
        (1, 0, (True, False), (True, False)),
        (2, 1, (True, False), (True, False)),
        (2, 0, (True, True), (True, False)),  # the first call of the script was complete
        (1, 1, (False, False), (True, False)),  # the second call had not begun
    ],
)
def test_which_call_a_checkpoint_belongs_to(
    files, is_file, saved, calls_made, from_folder, from_file
):
    handler = make()
    handler.calls_made = calls_made
    where = files / str(saved) / "a.pth" if is_file else str(files / str(saved))
    expected = from_file if is_file else from_folder
    assert ask(handler, where) == expected
    assert handler.state.epoch == (2 * saved if expected[0] else 0)


def test_the_file_is_protected_and_logged(files, caplog):
    handler = make()
    with caplog.at_level(logging.INFO, logger="fitkit"):
        ask(handler, files / "1")
    path = (files / "1" / "a.pth").resolve()
    assert handler.saves.protected == path
    assert caplog.messages == [f"resuming from {path}"]


def test_folders_of_savers_below_the_given_one_are_searched(files):
    handler = make()
    assert ask(handler, files) == (False, False)  # files are one folder below
    for call in (1, 2):
        handler.add_callback(ModelCheckpoint(files / str(call) / "a.pth", monitor="loss"))
    assert ask(handler, files) == (True, True)
    assert handler.state.epoch == 4


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
