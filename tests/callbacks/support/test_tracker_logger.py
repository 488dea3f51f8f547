"""What all loggers that write to trackers do, each read back from its own tracker."""

import contextlib
import math
import random
import sys

import pytest
import torch
from torch import nn

import fitkit
from fitkit.callbacks.support.tracker_logger import TrackerLogger
from fitkit.core.callback import Callback
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event
from fitkit.runtime.rng import seed_host_streams
from fitkit.testing import assert_resumes_exactly


def make_handler():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    handler = fitkit.NNHandler(model, seed=3)
    handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, interval="step", step_size=2)
    handler.set_loss_fn(nn.MSELoss())
    inputs = torch.arange(30, dtype=torch.float32).reshape(10, 3) / 30
    handler.set_train_loader((inputs, inputs.sum(1, keepdim=True)), batch_size=4)
    handler.set_val_loader((inputs[:6], inputs[:6, :1]), batch_size=3)
    return handler


class Watch(Callback):
    """What a tracker has to hold in the end."""

    order = 99
    state_fields = ("expected", "rate")

    def __init__(self, every_n_batches=1):
        self.every_n_batches = every_n_batches
        self.expected = {}
        self.rate = None

    def add(self, values):
        step = self.handler.state.global_step
        added = {name: [*self.expected.get(name, []), (step, v)] for name, v in values.items()}
        self.expected = {**self.expected, **added}

    def on_train_batch_begin(self, batch, logs):
        self.rate = self.handler.optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step % self.every_n_batches == 0:
            self.add({"batch/loss": logs["loss"], "batch/lr": self.rate})

    def on_epoch_end(self, epoch, logs):
        self.add({**logs, "epoch": epoch})


class ReadBack(Callback):
    """What a tracker holds when training is over; ``fitkit.testing`` compares it."""

    order = 1000
    state_fields = ("found",)

    def __init__(self, kind, logger):
        self.kind = kind
        self.logger = logger
        self.found = {}

    def on_train_end(self, logs):
        self.found = self.kind.read(self.logger.run_id)


def fit(*callbacks, handler=None, **options):
    handler = handler or make_handler()
    handler.fit(callbacks=callbacks, progress_bar=False, **{"epochs": 2, **options})
    return handler


def same(kind, found, expected):
    """Whether they are equal, as exactly as the tracker can tell."""
    if kind.exact:
        assert found == expected
        return
    assert {name: [step for step, _ in rows] for name, rows in found.items()} == {
        name: [step for step, _ in rows] for name, rows in expected.items()
    }
    for name, rows in found.items():
        assert [value for _, value in rows] == pytest.approx([v for _, v in expected[name]], 1e-6)


# ---- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, None])
def test_values_by_batch_and_by_epoch_with_their_steps(tracker, every):
    logger, watch = tracker.make(every_n_batches=every), Watch(every or 10**6)
    fit(logger, watch)
    same(tracker, tracker.read(logger.run_id), watch.expected)
    assert watch.expected["epoch"] == [(3, 0), (6, 1)]
    assert tracker.status(logger.run_id) == "finished"


def test_every_group_s_learning_rate(tracker):
    def groups(module):
        return [{"params": [one], "lr": 0.1 * k} for k, one in enumerate(module.parameters(), 1)]

    handler = fitkit.NNHandler(nn.Linear(3, 1), seed=0)
    handler.set_optimizer(torch.optim.SGD, params=groups, lr=1.0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader((torch.ones(4, 3), torch.ones(4, 1)), batch_size=2)
    logger = tracker.make(every_n_batches=2)
    fit(logger, handler=handler, epochs=1)
    found = tracker.read(logger.run_id)
    expected = {"lr_0": [(2, 0.1)], "lr_1": [(2, 0.2)]}
    for name, rows in expected.items():
        same(tracker, {name: found[name]}, {name: rows})
        same(tracker, {name: found[f"batch/{name}"]}, {name: rows})


def test_parameters_of_the_run_and_of_the_user(tracker):
    logger = tracker.make(parameters={"data": {"fold": 3, "seed": 5}, "seed": 11})
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=1, seed=4)
    handler.set_optimizer(torch.optim.AdamW, lr=0.25)
    handler.set_loss_fn(nn.MSELoss())
    fit(logger, handler=handler, train_data=(torch.ones(4, 3), torch.ones(4, 1)), batch_size=2)
    found = {name: str(value) for name, value in tracker.parameters(logger.run_id).items()}
    expected = {
        "model": "Linear",
        "model.in_features": "3",
        "optimizer": "AdamW",
        "optimizer.lr": "0.25",
        "loss": "MSELoss",
        "batch_size": "2",
        "epochs": "2",
        "data.fold": "3",
        "data.seed": "5",
        "seed": "11",
    }
    found = {name: value.removesuffix(".0") for name, value in found.items()}  # numbers are floats
    assert found.items() >= expected.items()
    assert not {"resumed", "last_epoch"} & set(found)


def test_values_that_are_not_finite(tracker, drive):
    logger = tracker.make()
    drive(logger).fit([{"loss": math.nan, "val_loss": math.inf}])
    found = tracker.read(logger.run_id)
    assert math.isnan(found["loss"][0][1])
    assert found["val_loss"][0][1] > 1e300


# ---- when it is written -------------------------------------------------------------------------


class Rows(TrackerLogger):
    """A tracker that keeps what it is given."""

    def __init__(self, safe=math.inf, **options):
        super().__init__(**options)
        self.safe = safe
        self.given = []

    def open_run(self, run_id):
        random.random()
        torch.rand(3)
        return run_id or "run"

    def write_parameters(self, parameters):
        self.described = parameters

    def write_rows(self, rows):
        self.given.append([(step, sorted(values)) for step, _, values in rows])

    def durable_step(self):
        return self.safe

    def close_run(self, status):
        self.closed = status


BATCH = ["batch/loss", "batch/lr"]


def test_rows_wait_for_the_epoch_s_end_and_those_of_one_step_are_one(drive):
    logger = Rows(every_n_batches=1, refresh_seconds=1e6)
    drive(logger, steps=3).fit([0.5, 0.25])
    epoch = [*BATCH, "epoch", "loss", "val_loss"]
    assert logger.given == [
        [(1, BATCH), (2, BATCH), (3, epoch)],
        [(4, BATCH), (5, BATCH), (6, epoch)],
    ]
    assert (logger.pending, logger.written_step) == ((), 6)


def test_a_row_is_written_only_when_it_is_whole(drive):
    logger = Rows(every_n_batches=1, refresh_seconds=0)
    drive(logger, steps=2).fit([0.5])
    assert [[step for step, _ in rows] for rows in logger.given] == [[1], [2]]


def test_there_is_a_limit_to_what_waits(drive):
    logger = Rows(every_n_batches=1, refresh_seconds=1e6)
    driver = drive(logger, steps=250)
    driver.begin()
    driver.epoch({"loss": 1.0})
    assert [len(rows) for rows in logger.given] == [100, 100, 50]


def test_values_on_a_device_are_kept_there_until_they_are_written(drive):
    logger = Rows(every_n_batches=1, refresh_seconds=1e6)
    driver = drive(logger)
    driver.begin()
    value = torch.tensor(0.5)
    driver.batch(0, {"loss": value})
    assert logger.pending[0][2]["batch/loss"] is value


def test_what_would_be_lost_stays_in_the_state(drive):
    logger = Rows(every_n_batches=1, safe=1)
    driver = drive(logger, steps=3)
    driver.begin()
    driver.epoch({"loss": 1.0})
    assert [row[0] for row in logger.unsafe] == [2, 3]
    saved = driver.save()
    driver.end()
    assert (logger.unsafe, logger.closed) == ((), "finished")
    again = Rows(every_n_batches=1)
    driver.resume(again, saved=saved).end()
    assert [[step for step, _ in rows] for rows in again.given] == [[2, 3]]


def test_what_the_tracker_draws_is_not_drawn_from_training(drive, draw):
    driver = drive(Rows())
    seed_host_streams(1)
    expected = draw()
    seed_host_streams(1)
    driver.begin()
    assert draw() == expected


def test_other_processes_write_nothing(tracker, drive, tmp_path):
    logger = tracker.make()
    driver = drive(logger)
    driver.handler.world.is_main = False
    driver.fit([0.5])
    assert logger.run_id is None
    assert not list(tmp_path.iterdir())


# ---- going on -----------------------------------------------------------------------------------


def test_resumed_at_every_boundary_the_run_holds_what_an_uninterrupted_one_does(tracker):
    def make_callbacks():
        logger = tracker.make(every_n_batches=1)
        return [logger, Watch(), ReadBack(tracker, logger)]

    tried = assert_resumes_exactly(
        make_handler,
        make_callbacks=make_callbacks,
        ignore=("*files*",),
        every=4,
        epochs=2,
        gradient_accumulation_steps=2,
    )
    assert len(tried) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "later"), [(0, 2), (1, 0), (4, 1), (4, 3), (6, 3)])
def test_what_was_written_after_the_checkpoint_is_not_there_twice(tracker, drive, cut, later):
    """The state is that of step ``cut``, the tracker's run goes ``later`` steps further."""
    watch = Watch()
    whole = tracker.make(every_n_batches=1)
    steps(drive(whole, watch, steps=3), 0, 9).end()
    first = drive(tracker.make(every_n_batches=1), steps=3)
    saved = steps(first, 0, cut).save()
    steps(first, cut, cut + later).end()
    logger = tracker.make(every_n_batches=1)
    steps(first.resume(logger, saved=saved), cut, 9).end()
    found = tracker.read(logger.run_id)
    same(tracker, found, watch.expected)
    assert logger.run_id == first.callbacks[0].run_id


def steps(driver, begin, end):
    """Drive batches ``begin`` to ``end`` of epochs of 3, from the beginning of training if at 0."""
    if begin == 0 and not driver.params:
        driver.begin()
    for step in range(begin, end):
        driver.batch(step % 3, {"loss": 1 / (step + 1)})
        if step % 3 == 2:
            driver.end_epoch({"loss": 2 / (step + 1), "val_loss": 0.5})
    return driver


def test_a_training_that_goes_on_differently_is_told(tracker, drive):
    first = drive(tracker.make(every_n_batches=1), steps=3)
    saved = steps(first, 0, 1).save()
    steps(first, 1, 3).end()
    second = first.resume(tracker.make(every_n_batches=1), saved=saved)
    second.batch(1, {"loss": 9.0})
    second.batch(2, {"loss": 8.0})
    if isinstance(second.callbacks[0], fitkit.TensorBoardLogger):  # has forgotten the old ones
        second.end()
        found = tracker.read(second.callbacks[0].run_id)["batch/loss"]
        assert [value for _, value in found] == [1.0, 9.0, 8.0]
        return
    with pytest.warns(UserWarning, match=r"already has 'batch/loss' = 0.5 at step 2.*has 9.0"):
        second.end()


def test_a_second_fit_goes_on_and_another_handler_begins_a_run(tracker):
    logger, watch = tracker.make(every_n_batches=1), Watch()
    handler = fit(logger, watch)
    run_id = logger.run_id
    expected = watch.expected
    fit(logger, watch, handler=handler, epochs=1)
    assert logger.run_id == run_id
    second = {name: [*expected[name], *rows] for name, rows in watch.expected.items()}
    same(tracker, tracker.read(run_id), second)
    fit(logger, epochs=1)
    assert logger.run_id != run_id
    assert len(tracker.read(logger.run_id)["loss"]) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "killed"), (RuntimeError, "failed")]
)
def test_the_run_is_closed_however_training_ends(tracker, error, status):
    logger = tracker.make(every_n_batches=1)

    def fail(batch, logs):
        if batch == 1:
            raise error

    with contextlib.suppress(RuntimeError):
        fit(logger, fitkit.LambdaCallback(on_train_batch_end=fail))
    if isinstance(logger, fitkit.TensorBoardLogger):
        status = "failed"  # knows no other
    assert tracker.status(logger.run_id) == status
    # Lambda callbacks come before loggers: the second batch was not heard of any more
    assert [step for step, _ in tracker.read(logger.run_id)["batch/loss"]] == [1]


def test_an_error_before_the_run_was_opened_is_the_one_that_is_raised(drive):
    logger = Rows()
    driver = drive(logger)
    driver.callbacks.bind(driver.handler, {}, None)
    driver.callbacks.fire_to_all(Event.EXCEPTION, RuntimeError())
    assert driver.callbacks.fire_to_all(Event.TRAIN_END, {}) == []
    assert not hasattr(logger, "closed")


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_batches": 0},
        {"every_n_batches": 1.5},
        {"refresh_seconds": -1},
        {"refresh_seconds": "soon"},
        {"parameters": [("a", 1)]},
        {"log_checkpoints": "worst"},
        {"log_checkpoints": 1},
    ],
)
def test_wrong_arguments(wrong):
    with pytest.raises(ConfigurationError, match="received"):
        Rows(**wrong)


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("TensorBoardLogger", "tensorboard", "pip install tensorboard"),
        ("MLflowLogger", "mlflow", "pip install mlflow-skinny sqlalchemy alembic"),
        ("WandbLogger", "wandb", "pip install wandb"),
    ],
)
def test_without_the_package_construction_names_the_command(monkeypatch, name, package, command):
    for module in [one for one in sys.modules if one.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=f"^{name} needs .*: {command}$"):
        getattr(fitkit, name)()


# ---- checkpoints --------------------------------------------------------------------------------


class Uploads(Rows):
    def __init__(self, **options):
        super().__init__(**options)
        self.files = []

    def upload_file(self, path):
        self.files.append(path.name)


@pytest.mark.parametrize(
    ("which", "files"),
    [(False, []), ("best", ["best.pth"]), (True, ["best.pth", "e1.pth", "e2.pth"])],
)
def test_which_checkpoints_are_uploaded(which, files, tmp_path):
    logger = Uploads(log_checkpoints=which)
    best = fitkit.ModelCheckpoint(tmp_path / "best.pth", "epoch_", True, mode="min")
    every = fitkit.ModelCheckpoint(tmp_path / "e{epoch}.pth")

    def log(epoch, logs):
        handler.log("epoch_", epoch)  # the first is the best

    handler = make_handler()
    order = fitkit.LambdaCallback(on_epoch_end=log)
    fit(logger, best, every, order, handler=handler)
    assert sorted(logger.files) == files
