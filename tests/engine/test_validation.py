"""Several validation sets by name: values, events, positions, exact resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit import ConfigurationError, MonitorError, NNHandler
from fitkit.core.state import FitState, Phase
from fitkit.testing import assert_resumes_exactly, differences


def fit(handler, data, **options):
    return handler.fit(data, **{"progress_bar": False, "batch_size": 2, **options})


class MeanOutput(fitkit.Callback):
    """What is evaluated, in the order in which it is heard."""

    state_fields = ("heard",)

    def __init__(self):
        self.heard = []

    def on_test_begin(self, logs):
        self.heard.append(f"begin {self.handler.state.evaluation_set}")

    def on_test_batch_end(self, batch, logs):
        self.heard.append(f"{self.handler.state.evaluation_set} {batch}")

    def on_test_end(self, logs):
        self.heard.append(f"end {self.handler.state.evaluation_set} {','.join(logs)}")

    def on_epoch_end(self, epoch, logs):
        assert self.handler.state.evaluation_set == ""


def absolute(outputs, targets):
    return (outputs - targets).abs().mean()


@pytest.fixture
def sets(make_data):
    """Sets of three different sizes and kinds; the last batch of two of them is short."""
    plain, few = make_data(5, seed=3), make_data(3, seed=4)
    return {
        "clean": plain,
        "noisy": DataLoader(TensorDataset(*make_data(4, seed=5)), batch_size=3),
        "few": [(few[0][:2], few[1][:2]), (few[0][2:], few[1][2:])],
    }


def samples_of(data):
    if isinstance(data, DataLoader):
        return data.dataset.tensors
    if isinstance(data, list):
        return tuple(map(torch.cat, zip(*data, strict=True)))
    return data


def test_each_set_has_its_own_values(make_handler, make_data, sets):
    handler = make_handler()
    handler.add_metric("absolute", absolute)
    history = fit(handler, make_data(6), validation_data=sets, epochs=2).history
    for name, data in sets.items():
        x, y = samples_of(data)
        with torch.no_grad():
            outputs = handler.module(x)
        found = [history[f"val_{name}_{value}"][-1] for value in ("loss", "absolute")]
        expected = [nn.functional.mse_loss(outputs, y), absolute(outputs, y)]
        assert found == pytest.approx([float(value) for value in expected], rel=1e-12)
        assert handler.evaluate(data, batch_size=2 if name == "clean" else None) == pytest.approx(
            {"loss": found[0], "absolute": found[1]}, rel=1e-12
        )
    assert set(history) == {"loss", "absolute", "lr"} | {
        f"val_{name}_{value}" for name in sets for value in ("loss", "absolute")
    }
    values = handler.evaluate(sets)
    assert values == pytest.approx(
        {name.removeprefix("val_"): v[-1] for name, v in history.items() if "val_" in name}
    )


def test_events_of_each_set_in_order(make_handler, make_data, sets):
    heard = MeanOutput()
    handler = make_handler()
    fit(handler, make_data(2), validation_data=sets, callbacks=[heard])
    expected = ["begin clean", "clean 0", "clean 1", "clean 2", "end clean loss"]
    for name in ("noisy", "few"):
        expected += [f"begin {name}", f"{name} 0", f"{name} 1", f"end {name} loss"]
    assert heard.heard == expected
    assert handler.state.evaluation_set == ""
    alone = MeanOutput()
    handler.evaluate(sets, callbacks=[alone], batch_size=2)
    assert alone.heard == expected
    assert handler.state.evaluation_set == ""


def test_a_set_without_a_name_beside_named_ones(make_handler, make_data):
    handler, stop = make_handler(), fitkit.EarlyStopping(patience=5)
    handler.set_val_loader(make_data(3))
    handler.set_val_loader(make_data(4, seed=2), name="other", batch_size=3)
    history = fit(handler, make_data(4), callbacks=[stop]).history
    assert {"val_loss", "val_other_loss"} < set(history)
    assert stop.best == history["val_loss"][0]
    assert set(handler.evaluate()) == {"loss", "other_loss"}
    with pytest.raises(ConfigurationError, match="prediction reads one set"):
        handler.predict(None)


def test_limits_hold_for_each_set(make_handler, make_data, sets):
    heard = MeanOutput()
    fit(
        make_handler(),
        make_data(2),
        validation_data=sets,
        validation_steps=1,
        validate_every=2,
        epochs=3,
        callbacks=[heard],
    )
    batches = [line for line in heard.heard if line[-1].isdigit()]
    assert batches == ["clean 0", "noisy 0", "few 0"]
    seen = {}
    look = fitkit.LambdaCallback(on_train_begin=lambda logs: seen.update(look.params))
    fit(make_handler(), make_data(2), validation_data=sets, callbacks=[look])
    assert seen["validation_sets"] == {"clean": 3, "noisy": 2, "few": 2}
    assert (seen["validation"], seen["validation_steps"]) == (True, 7)


def test_overfitting_validates_each_set_on_the_training_batches(make_handler, make_data, sets):
    handler = make_handler(lr=1e-12)
    data = make_data(6)
    history = fit(handler, data, validation_data=sets, overfit_batches=2).history
    first = data[0][:4], data[1][:4]
    expected = handler.evaluate(first)["loss"]
    for name in sets:
        assert history[f"val_{name}_loss"][0] == pytest.approx(expected, rel=1e-9)


def test_an_error_names_its_set(make_handler, make_data):
    wrong = make_data(4)[0], torch.zeros(4, 7, 1, dtype=torch.float64)
    sets = {"clean": make_data(4), "wrong": TensorDataset(*wrong)}

    def strict(outputs, targets):
        assert outputs.shape == targets.shape
        return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(AssertionError) as caught:
        fit(make_handler(loss=strict), make_data(4), validation_data=sets)
    assert "in the validation set 'wrong'" in caught.value.__notes__


def test_a_dry_run_and_a_sweep_leave_the_handler_as_it_was(make_handler, make_data, sets):
    handler = make_handler()
    handler.set_train_loader(make_data(8), batch_size=2)
    handler.set_val_loader({name: sets[name] for name in ("clean", "noisy")})
    before = copy.deepcopy(handler.get_state_dict())
    history = handler.fit(fast_dev_run=True, progress_bar=False).history
    assert {"val_clean_loss", "val_noisy_loss"} < set(history)
    handler.find_learning_rate(num_steps=5)
    assert not list(differences(before, handler.get_state_dict()))
    assert list(handler.parts.validation_data) == ["clean", "noisy"]


# ---- monitors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        fitkit.EarlyStopping,
        fitkit.ReduceLROnPlateau,
        lambda: fitkit.ModelCheckpoint("never/best.pth", save_best_only=True),
    ],
)
def test_a_default_monitor_without_its_set_is_an_error_before_the_first_epoch(
    make_handler, make_data, sets, make, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    handler = make_handler()
    with pytest.raises(MonitorError, match=r"have names: monitor one of 'val_clean_loss', "):
        fit(handler, make_data(4), validation_data=sets, callbacks=[make()])
    assert handler.state.global_step == 0


def test_the_default_of_a_schedule_too(make_handler, make_data, sets):
    handler = make_handler()
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, patience=0)
    with pytest.raises(MonitorError, match=r"the scheduler monitors 'val_loss'.*val_noisy_loss"):
        fit(handler, make_data(4), validation_data=sets)
    assert handler.state.global_step == 0


def test_a_named_value_is_monitored(make_handler, make_data, sets):
    handler, stop = make_handler(), fitkit.EarlyStopping("val_noisy_loss", patience=9)
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor="val_few_loss")
    history = fit(handler, make_data(4), validation_data=sets, epochs=3, callbacks=[stop]).history
    assert stop.best == min(history["val_noisy_loss"])
    assert handler.scheduler.best == min(history["val_few_loss"])


def test_a_callback_may_log_the_mean_as_val_loss(make_handler, make_data, sets):
    class Mean(fitkit.Callback):
        def on_test_end(self, logs):
            names = [f"val_{name}_loss" for name in sets]
            done = self.handler.state.live_logs()
            if all(name in done for name in names):
                self.log("val_loss", sum(done[name] for name in names) / len(names))

    stop = fitkit.EarlyStopping(strict=False, patience=9)
    history = fit(
        make_handler(), make_data(4), validation_data=sets, callbacks=[Mean(), stop]
    ).history
    mean = sum(history[f"val_{name}_loss"][0] for name in sets) / 3
    assert stop.best == history["val_loss"][0] == pytest.approx(mean)


def test_names_that_clash_are_refused_before_the_first_batch(make_handler, make_data):
    handler = make_handler()
    handler.add_metric("b_loss", absolute)
    data = make_data(4)
    with pytest.raises(ConfigurationError, match="would log 'val_a_b_loss'"):
        fit(handler, data, validation_data={"a": data, "a_b": data})
    with pytest.raises(ConfigurationError, match="would log 'val_a_b_loss'"):
        handler.evaluate({"a": data, "a_b": data})
    assert handler.state.global_step == 0


def test_a_name_of_a_set_cannot_be_logged_by_a_callback(make_handler, make_data, sets):
    class Takes(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            self.log("val_few_loss", 1.0)

    with pytest.raises(ConfigurationError, match="cannot log 'val_few_loss'"):
        fit(make_handler(), make_data(4), validation_data=sets, callbacks=[Takes()])


def test_values_of_a_step_that_clash_are_an_error(make_handler, make_data):
    def step(handler, batch):
        loss = nn.functional.mse_loss(handler.model(batch[0]), batch[1])
        return fitkit.StepOutput(loss, logs={"b_loss": loss.detach()})

    handler = make_handler()
    handler.set_train_step(step, step)
    data = make_data(4)
    with pytest.raises(ConfigurationError, match="set logs 'val_a_b_loss', which is logged"):
        fit(handler, data, validation_data={"a": data, "a_b": data})
    with pytest.raises(ConfigurationError, match="set logs 'a_b_loss', which is logged"):
        handler.evaluate({"a": data, "a_b": data})


# ---- resume -------------------------------------------------------------------------------------


class Drops(nn.Module):
    """Draws in evaluation too, so that each batch of each set has its own random numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x + 0.1 * torch.randn_like(x))


@pytest.mark.filterwarnings("ignore:list cannot seek")
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5, "validate_every": 2}], ids=str)
def test_a_run_goes_on_exactly_inside_each_set(make_data, sets, options):
    def make():
        handler = NNHandler(Drops, "cpu", seed=0)
        handler.set_optimizer(torch.optim.AdamW, lr=0.1)
        handler.set_loss_fn(nn.MSELoss())
        handler.add_metric("absolute", absolute)
        handler.set_train_loader(make_data(4), batch_size=2)
        handler.set_val_loader(sets)
        return handler

    labels = assert_resumes_exactly(
        make,
        make_callbacks=lambda: [MeanOutput(), fitkit.EarlyStopping("val_noisy_loss", patience=9)],
        epochs=2,
        **options,
    )
    assert sum("on_test_batch_end" in label for label in labels) >= 5
    assert sum("on_test_end" in label for label in labels) >= 3


def saved_in_validation(make_handler, data, sets, hook="on_test_batch_end", at="noisy"):
    """The state in the first epoch, at a hook of one set."""
    handler, found = make_handler(), []

    def save(*args):
        if handler.state.evaluation_set == at and not found:
            found.append(copy.deepcopy(handler.get_state_dict()))

    fit(
        handler,
        data,
        validation_data=sets,
        epochs=2,
        callbacks=[fitkit.LambdaCallback(**{hook: save})],
    )
    return found[0], handler


def test_the_position_names_the_set(make_handler, make_data, sets):
    state, _ = saved_in_validation(make_handler, make_data(4), sets)
    progress = state["progress"]["state"]
    assert (progress["phase"], progress["batch"]) == ("test", 1)
    assert (progress["evaluation_set"], progress["validated"]) == ("noisy", ["clean"])
    assert set(state["progress"]["meters"]) == {"train", "validation noisy"}
    assert set(state["loader"]) == {
        "train",
        "validation clean",
        "validation noisy",
        "validation few",
    }


@pytest.mark.parametrize("hook", ["on_test_batch_end", "on_test_end"])
def test_sets_in_another_order_go_on_with_the_same_one(
    make_handler, make_data, sets, hook, tmp_path
):
    data = make_data(4)
    state, whole = saved_in_validation(make_handler, data, sets, hook)
    torch.save(state, tmp_path / "saved.pth")
    other, heard = make_handler(), MeanOutput()
    order = {name: sets[name] for name in ("few", "noisy", "clean")}
    fit(
        other,
        data,
        validation_data=order,
        epochs=2,
        callbacks=[heard],
        resume=tmp_path / "saved.pth",
    )
    rest = {"on_test_batch_end": "noisy 1", "on_test_end": "begin few"}
    assert heard.heard[0] == rest[hook]
    assert [line for line in heard.heard if "begin" in line][:2] == ["begin few"] * 2
    assert not list(differences(other.history.history, whole.history.history))


def test_a_set_that_is_gone_is_left_out_and_a_new_one_is_validated(
    make_handler, make_data, sets, tmp_path
):
    data = make_data(4)
    state, _ = saved_in_validation(make_handler, data, sets)
    torch.save(state, tmp_path / "saved.pth")
    other, heard = make_handler(), MeanOutput()
    changed = {"clean": sets["clean"], "new": make_data(2)}
    history = fit(
        other,
        data,
        validation_data=changed,
        epochs=1,
        callbacks=[heard],
        resume=tmp_path / "saved.pth",
    ).history
    assert heard.heard == ["begin new", "new 0", "end new loss"]
    assert {"val_clean_loss", "val_new_loss"} < set(history)


def test_a_file_of_an_earlier_version_goes_on_inside_its_only_set(
    make_handler, make_data, tmp_path
):
    data, held_out = make_data(4), make_data(6, seed=2)
    state, whole = saved_in_validation(make_handler, data, held_out, at="")
    for name in ("evaluation_set", "validated"):
        state["progress"]["state"].pop(name, None)
    torch.save(state, tmp_path / "saved.pth")
    other = make_handler()
    fit(other, data, validation_data=held_out, epochs=2, resume=tmp_path / "saved.pth")
    assert not list(differences(other.history.history, whole.history.history))


def test_a_later_set_is_a_later_position():
    state, positions = FitState(), []
    state.enter(Phase.TRAIN)
    for is_last in (False, False, True):
        state.enter(Phase.VALIDATE)
        positions.append(state.position())
        state.enter(Phase.TEST)
        state.batch = 3
        positions.append(state.position())
        state.finish_set(is_last=is_last)
    positions.append(state.position())
    state.advance_epoch()
    positions.append(state.position())
    assert positions == sorted(set(positions))
    assert (state.validated, state.evaluation_set) == ([], "")


def test_a_resume_says_which_set_it_goes_on_in(make_handler, make_data, sets, tmp_path, caplog):
    data = make_data(4)
    state, _ = saved_in_validation(make_handler, data, sets)
    torch.save(state, tmp_path / "saved.pth")
    with caplog.at_level("INFO", logger="fitkit"):
        fit(make_handler(), data, validation_data=sets, epochs=2, resume=tmp_path / "saved.pth")
    assert "after validation batch 1 of 'noisy'" in caplog.text
