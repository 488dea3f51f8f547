import io
import math
import pickle

import pytest
import torch
from torch import nn

import fitkit
from fitkit import NNHandler
from fitkit.callbacks.history import History
from fitkit.checkpointing.format.growing_list import GrowingList
from fitkit.checkpointing.storage.joined_pickler import JoinedPickler


def content_of(pickled):
    file = io.BytesIO()
    JoinedPickler(file, 2).dump(pickled)
    return pickle.loads(file.getvalue())


def same(left, right):
    return left == right or (math.isnan(left) and math.isnan(right))


def test_lists_are_floats_equally_long_and_missing_values_nan(drive):
    driver = drive(history := History())
    driver.begin()
    for logs in (
        {"loss": 1},
        {"loss": 0.5, "val_loss": 0.75, "new": 3.0},
        {"loss": 0.25, "new": 4.0},
    ):
        driver.epoch(logs)
    expected = {
        "loss": [1.0, 0.5, 0.25],
        "val_loss": [math.nan, 0.75, math.nan],
        "new": [math.nan, 3.0, 4.0],
    }
    assert history.epoch == [0, 1, 2]
    assert list(history.history) == list(expected)
    for name, values in expected.items():
        found = history.history[name]
        assert all(type(value) is float for value in found)
        assert all(map(same, found, values))


def test_a_second_fit_and_a_resume_go_on(drive):
    driver = drive(History())
    driver.fit([1.0, 2.0])
    driver.fit([3.0])
    again = History()
    resumed = driver.resume(again)
    resumed.epoch({"loss": 0.0, "val_loss": 4.0})
    assert again.epoch == [0, 1, 2, 3]
    assert again.history["val_loss"] == [1.0, 2.0, 3.0, 4.0]


def test_states_taken_earlier_do_not_change(drive):
    driver = drive(history := History()).fit([1.0])
    taken = history.state_dict()
    driver.epoch({"loss": 2.0, "val_loss": 2.0})
    assert taken == {"epoch": [0], "history": {"loss": [1.0], "val_loss": [1.0]}}


@pytest.mark.parametrize("background", [False, True])
def test_a_file_holds_plain_lists_of_all_epochs_however_many(tmp_path, background):
    handler = NNHandler(nn.Linear(1, 1), seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    past = {"epoch": list(range(2500)), "history": {"loss": [n / 7 for n in range(2500)]}}
    handler.history.load_state_dict(past)
    handler.state.epoch = 2500
    saver = fitkit.ModelCheckpoint(tmp_path / "{epoch}.pth", background=background)
    data = (torch.ones(2, 1), torch.ones(2, 1))
    history = handler.fit(data, epochs=3, callbacks=[saver], progress_bar=False)
    for path in tmp_path.glob("*.pth"):
        found = torch.load(path, weights_only=True)["history"]
        num_epochs = len(found["epoch"])
        columns = {name: values[:num_epochs] for name, values in history.history.items()}
        columns = {name: values for name, values in columns.items() if name in found["history"]}
        assert repr(found) == repr({"epoch": history.epoch[:num_epochs], "history": columns})
        assert {type(one) for one in (found["epoch"], *found["history"].values())} == {list}
    assert len(found["epoch"]) > 2500


def test_lists_that_a_program_has_put_there_are_saved(drive):
    history = History()
    drive(history).fit([1.0])
    history.epoch, history.history = [4], {"mine": [2.0]}
    saved = content_of(history.pickled_state())
    assert saved == history.state_dict() == {"epoch": [4], "history": {"mine": [2.0]}}


def test_another_run_begins_anew(drive):
    history = History()
    drive(history).fit([1.0])
    drive(history).fit([2.0])
    assert history.history["val_loss"] == [2.0]


def test_helpers_by_kind(drive):
    driver = drive(history := History())
    nan = math.nan
    driver.fit(
        [
            {"loss": 3.0, "accuracy": 0.1, "lr": 0.1},
            {"loss": 2.0, "accuracy": 0.2, "lr": 0.1, "val_loss": nan, "val_accuracy": 0.3},
            {"loss": 1.0, "accuracy": 0.3, "lr": 0.1, "val_loss": 4.0, "val_accuracy": 0.4},
        ]
    )
    assert history.train_losses == [3.0, 2.0, 1.0]
    assert history.train_metrics_history == {"accuracy": [0.1, 0.2, 0.3]}
    # the epoch without validation is left out, a loss that really was NaN is not
    assert history.val_metrics_history == {"accuracy": [0.3, 0.4]}
    assert len(history.val_losses) == 2
    assert math.isnan(history.val_losses[0])


def test_an_empty_history():
    history = History()
    assert (history.train_losses, history.val_losses) == ([], [])
    assert (history.train_metrics_history, history.val_metrics_history) == ({}, {})
    assert history.interrupted is False


def test_plot_returns_a_figure(drive, tmp_path):
    pytest.importorskip("matplotlib")
    drive(history := History()).fit([1.0, 0.5])
    path = tmp_path / "deep" / "curves.png"
    assert history.plot(path).axes
    assert path.read_bytes().startswith(b"\x89PNG")


def test_lists_that_a_fit_returned_do_not_grow_in_the_next_one(tmp_path):
    handler = NNHandler(nn.Linear(2, 1), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    data = (torch.ones(4, 2), torch.ones(4, 1))
    first = handler.fit(data, epochs=2, progress_bar=False)
    epochs, losses = first.epoch, first.history["loss"]
    again = handler.fit(data, epochs=1, progress_bar=False)
    assert (len(epochs), len(losses)) == (2, 2)
    assert (len(again.epoch), len(again.history["loss"])) == (3, 3)
    assert again.history["loss"][:2] == losses


@pytest.mark.parametrize("name", ["epoch", "history"])
def test_what_a_program_changes_between_two_saves_is_saved(drive, name):
    drive(history := History()).fit([0.0, 1.0, 2.0])
    assert content_of(history.pickled_state()) == history.state_dict()
    values = history.epoch if name == "epoch" else history.history["val_loss"]
    values[1] = 7
    content = content_of(history.pickled_state())
    assert content == history.state_dict()
    assert (content["epoch"] if name == "epoch" else content["history"]["val_loss"])[1] == 7
    history.on_train_begin({})
    values[0] = 8
    history.on_epoch_end(3, {"loss": 3.0})
    content = content_of(history.pickled_state())
    assert content["epoch"] == history.epoch == [0, 7 if name == "epoch" else 1, 2, 3]


def test_lists_that_nobody_has_read_are_not_compared_at_a_save(drive, monkeypatch):
    """A save does not grow with the number of epochs."""
    drive(history := History()).fit([1.0])
    real, seen = GrowingList.pickled, []
    monkeypatch.setattr(
        GrowingList,
        "pickled",
        lambda self, values, is_changeable: (
            seen.append(is_changeable) or real(self, values, is_changeable)
        ),
    )

    def compared():
        seen.clear()
        history.pickled_state()
        return set(seen)

    assert compared() == {False}
    assert history.epoch == [0]
    assert compared() == {True}
    history.on_train_begin({})
    assert compared() == {False}
