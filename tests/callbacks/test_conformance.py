"""What holds for every callback that fitkit exports, also for the next one."""

from __future__ import annotations

import copy
import io
import random

import pytest
import torch
from torch import nn

import fitkit
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError
from fitkit.testing import assert_resumes_exactly, differences

pytestmark = pytest.mark.no_cover

EXPORTED = [
    found
    for found in (getattr(fitkit, name) for name in fitkit.__all__)
    if isinstance(found, type) and issubclass(found, Callback) and found is not Callback
]

# Falling losses with mode="max" make a check without improvement of every epoch but the first.
MAKE = {
    "AutoSaver": lambda: fitkit.AutoSaver(2, "auto", "model_{epoch:02d}"),
    "CSVLogger": lambda: fitkit.CSVLogger("logs/log.csv"),
    "ConsoleLogger": lambda: fitkit.ConsoleLogger(),
    "EMA": lambda: fitkit.EMA(0.8),
    "EarlyStopping": lambda: fitkit.EarlyStopping(
        "loss", mode="max", patience=2, restore_best_weights=True
    ),
    "GradientAccumulationScheduler": lambda: fitkit.GradientAccumulationScheduler({1: 2}),
    "HTMLReport": lambda: fitkit.HTMLReport("logs/report.html"),
    "History": lambda: fitkit.History(),
    "JSONLinesLogger": lambda: fitkit.JSONLinesLogger("logs/log.jsonl"),
    "LambdaCallback": lambda: fitkit.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    "LearningRateMonitor": lambda: fitkit.LearningRateMonitor(log_momentum=True),
    "LearningRateScheduler": lambda: fitkit.LearningRateScheduler(lambda epoch, lr: lr * 0.9),
    "MLflowLogger": lambda: fitkit.MLflowLogger("fitkit", every_n_batches=1),
    "ModelCheckpoint": lambda: fitkit.ModelCheckpoint(
        "best/{epoch:02d}.pth", monitor="val_loss", save_best_only=True, max_to_keep=1
    ),
    "PredictionWriter": lambda: fitkit.PredictionWriter("predictions"),
    "Profiler": lambda: fitkit.Profiler("traces/trace.json", active=3),
    "ProgressBar": lambda: fitkit.ProgressBar(),
    "ReduceLROnPlateau": lambda: fitkit.ReduceLROnPlateau(
        "loss", mode="max", patience=1, cooldown=2
    ),
    "TensorBoardLogger": lambda: fitkit.TensorBoardLogger("tb", every_n_batches=1),
    "TerminateOnNaN": lambda: fitkit.TerminateOnNaN(),
    "ThroughputMonitor": lambda: fitkit.ThroughputMonitor(),
    "Timer": lambda: fitkit.Timer(1e6),
    "WandbLogger": lambda: fitkit.WandbLogger(mode="offline", dir=".", every_n_batches=1),
}
CHANGE_TRAINING = {
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LearningRateScheduler",
    "ReduceLROnPlateau",
}
TIMES = (
    "*seconds*",
    "*samples_per_second*",
    "*batches_per_second*",
    "*waiting_share*",
    "*trace.json*",
)
# full of times, as are rows that are still on their way in checkpoints; test_tracker.py compares
# what trackers hold
FILES_OF_TRACKERS = ("*files*tb/*", "*files*wandb/*", "*files*'unsafe'*", "*files*'pending'*")
OPTIONS = {"epochs": 4, "validate_every": 2}


def make_handler():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    handler = fitkit.NNHandler(model, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        inputs, targets = torch.randn(10, 3), torch.randint(0, 2, (10,))
        for parameter in model.parameters():
            parameter.data.uniform_(-0.5, 0.5)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_train_loader((inputs, targets), batch_size=6)
    handler.set_val_loader((inputs[:6], targets[:6]), batch_size=6)
    return handler


def run(*callbacks, **options):
    handler = make_handler()
    handler.fit(callbacks=callbacks, progress_bar=False, **{**OPTIONS, **options})
    return handler


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch, default_mlflow_store):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=EXPORTED, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def trained(kind):
    """A callback of each kind that has been through a run."""
    callback = MAKE[kind.__name__]()
    run(callback)
    return callback


def test_every_exported_callback_is_tried():
    assert {kind.__name__ for kind in EXPORTED} == set(MAKE)
    assert set(MAKE) >= CHANGE_TRAINING


@pytest.mark.slow
def test_resumed_it_equals_itself_uninterrupted(kind):
    """Every saved field matters here; test_exact_resume_callbacks.py tries every boundary."""
    tried = assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: [MAKE[kind.__name__]()],
        ignore=TIMES + FILES_OF_TRACKERS,
        every=5,
        **OPTIONS,
    )
    epochs = 3 if kind is fitkit.EarlyStopping else OPTIONS["epochs"]
    assert tried[-1] == f"on_epoch_end, epoch {epochs - 1}"


def test_all_of_them_together_too_whatever_their_order():
    def shuffled(seed):
        # times would be in the log files, which are compared byte for byte
        callbacks = [make() for name, make in MAKE.items() if name != "ThroughputMonitor"]
        random.Random(seed).shuffle(callbacks)
        return callbacks

    orders = iter(range(1000))
    assert_resumes_exactly(
        make_handler,
        make_callbacks=lambda: shuffled(next(orders)),
        ignore=TIMES + FILES_OF_TRACKERS,
        every=3,
        **OPTIONS,
    )


def test_its_state_is_plain(trained):
    state = trained.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert not list(differences(state, read))


def test_its_state_goes_round(kind, trained):
    state = copy.deepcopy(trained.state_dict())
    other = MAKE[kind.__name__]()
    other.load_state_dict(state)
    assert not list(differences(state, other.state_dict()))


def test_a_state_with_missing_or_unknown_keys_is_refused_and_changes_nothing(trained):
    state = copy.deepcopy(trained.state_dict())
    wrong = [{**state, "surplus": 1}]
    known = [key for key in state if key != "lasting"]  # files of earlier versions lack it
    wrong += [{key: state[key] for key in state if key != missing} for missing in known]
    for one in wrong:
        with pytest.raises(CheckpointError, match=r"missing|unknown"):
            trained.load_state_dict(one)
        assert not list(differences(state, trained.state_dict()))


def test_the_state_it_gives_away_does_not_change_later(kind):
    taken = []
    callback = MAKE[kind.__name__]()

    def take(epoch, logs):
        taken.append((callback.state_dict(), copy.deepcopy(callback.state_dict())))

    run(callback, fitkit.LambdaCallback(on_epoch_end=take))
    for given, copied in taken:
        assert not list(differences(given, copied))


def test_reset_makes_it_new(kind, trained):
    trained.reset()
    assert not list(differences(MAKE[kind.__name__]().state_dict(), trained.state_dict()))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in EXPORTED if kind.__name__ not in CHANGE_TRAINING],
    ids=lambda kind: kind.__name__,
)
def test_it_does_not_change_training_unless_it_is_there_for_that(kind):
    plain, watched = run(), run(MAKE[kind.__name__]())
    weights = [handler.weights.training() for handler in (plain, watched)]
    assert not list(differences(*weights))
    rngs = [handler.get_state_dict()["rng"] for handler in (plain, watched)]
    assert not list(differences(*rngs))


# another handler is another run: its files get names of their own
@pytest.mark.filterwarnings("ignore:.* saves to .*-v2.pth:RuntimeWarning")
def test_it_can_be_used_for_fit_after_fit_and_by_another_handler(kind):
    callback = MAKE[kind.__name__]()
    handler = run(callback)
    handler.fit(epochs=2, callbacks=[callback], progress_bar=False)
    run(callback)


def test_it_survives_interrupts_and_errors(kind):
    for error in (KeyboardInterrupt, RuntimeError):

        def fail(batch, logs, error=error):
            raise error

        callbacks = [MAKE[kind.__name__](), fitkit.LambdaCallback(on_train_batch_end=fail)]
        if error is KeyboardInterrupt:
            assert run(*callbacks).history.interrupted
        else:
            with pytest.raises(RuntimeError):
                run(*callbacks)


def test_it_works_for_evaluation_and_prediction_outside_training(kind):
    handler = make_handler()
    handler.evaluate(callbacks=[MAKE[kind.__name__]()])
    handler.predict(torch.zeros(3, 3), callbacks=[MAKE[kind.__name__]()])


def test_a_trial_run_leaves_no_file(kind, tmp_path):
    run(MAKE[kind.__name__](), fast_dev_run=True)
    assert not list(tmp_path.iterdir())
