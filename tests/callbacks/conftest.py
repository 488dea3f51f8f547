"""A stand-in for the handler and its loop: callbacks hear events, nothing is trained."""

from __future__ import annotations

import contextlib
import copy
import logging
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fitkit
from fitkit.callbacks.history import History
from fitkit.callbacks.support.wandb_file import WandbFile
from fitkit.core.callback_list import CallbackList
from fitkit.core.data_timer import DataTimer
from fitkit.core.event import Event
from fitkit.core.logs import Logs
from fitkit.core.state import FitState, Phase


class StandInHandler:
    """What callbacks see of a handler."""

    def __init__(self):
        self.module = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0, momentum=0.5)
        self.state = FitState()
        self.history = History()
        self.world = SimpleNamespace(is_main=True)
        self.saves = SimpleNamespace(describe=lambda step: "")
        self.logger = logging.Logger("stand-in")
        self.lines = []
        self.logger.addHandler(_Lines(self.lines))
        self.ema = self.scheduler = None
        self.gradient_accumulation_steps = 1
        self.logged = {}
        self.seed = 7
        self.parts = SimpleNamespace(
            model_spec=None, optimizer_spec=None, scheduler_spec=None, loss=None
        )
        self.callbacks = CallbackList()
        self.device = torch.device("cpu")
        self.clock = DataTimer()
        self.weights = SimpleNamespace(
            evaluated=lambda: {k: v.clone() for k, v in self.module.state_dict().items()},
            restore=lambda weights, keep_trained: self.module.load_state_dict(weights),
        )
        self.session = SimpleNamespace(time_data_loading=lambda: self.clock)

    def set_weight(self, value):
        with torch.no_grad():
            self.module.weight.fill_(value)

    @property
    def weight(self):
        return self.module.weight.item()

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def log(self, name, value):
        self.logged[name] = value

    def running_logs(self):
        return {"loss": 0.5}


class _Lines(logging.Handler):
    def __init__(self, lines):
        super().__init__()
        self._lines = lines

    def emit(self, record):
        self._lines.append(record.getMessage())


class Driver:
    """Fires the events of a fit with given epoch logs."""

    def __init__(self, *callbacks, steps=2):
        self.handler = StandInHandler()
        self.callbacks = CallbackList(callbacks)
        self.steps = steps
        self.params = {}

    @property
    def state(self):
        return self.handler.state

    def begin(self, last_epoch=100, **params):
        defaults = {
            "epochs": last_epoch - self.state.epoch,
            "first_epoch": self.state.epoch,
            "last_epoch": last_epoch,
            "steps": self.steps,
            "validation": True,
            "validation_steps": 1,
            "validate_every": 1,
            "metrics": [],
            "resumed": False,
        }
        self.params = {**defaults, **params}
        self.callbacks.bind(self.handler, self.params, None)
        self.callbacks.begin()
        self.state.begin_call()
        self.callbacks.fire(Event.TRAIN_BEGIN, Logs())

    def epoch(self, logs, batch_logs=None):
        state, epoch = self.state, self.state.epoch
        self.handler.logged = {}
        state.enter(Phase.TRAIN)
        self.callbacks.fire(Event.EPOCH_BEGIN, epoch, Logs())
        for batch in range(self.steps):
            self.batch(batch, {"loss": 0.5} if batch_logs is None else batch_logs[batch])
            if state.stopping:
                break
        self.end_epoch(logs)

    def batch(self, batch, logs):
        self.callbacks.fire(Event.TRAIN_BATCH_BEGIN, batch, Logs())
        self.state.advance_batch(4)
        self.callbacks.fire(Event.TRAIN_BATCH_END, batch, Logs(logs))

    def validate(self, steps=1):
        self.state.enter(Phase.TEST)
        self.callbacks.fire(Event.TEST_BEGIN, Logs())
        for batch in range(steps):
            self.callbacks.fire(Event.TEST_BATCH_BEGIN, batch, Logs())
            self.state.batch = batch + 1
            self.callbacks.fire(Event.TEST_BATCH_END, batch, Logs({"loss": 0.5}))
        self.callbacks.fire(Event.TEST_END, Logs({"loss": 0.5}))

    def end_epoch(self, logs):
        epoch = self.state.epoch
        self.state.advance_epoch()
        self.callbacks.fire(Event.EPOCH_END, epoch, Logs({**logs, **self.handler.logged}))

    def end(self):
        self.callbacks.fire_to_all(Event.TRAIN_END, Logs())

    def fit(self, values, **params):
        """One epoch per element: a value of ``val_loss``, or a dict of logs; ends at a stop."""
        self.begin(**params)
        for number, value in enumerate(values):
            self.handler.set_weight(number)
            self.epoch(value if isinstance(value, dict) else {"loss": 1.0, "val_loss": value})
            if self.state.stopping:
                break
        self.end()
        return self

    def save(self):
        """What a checkpoint made now would hold."""
        return copy.deepcopy(
            {
                "state": self.state.state_dict(),
                "model": self.handler.module.state_dict(),
                "optimizer": self.handler.optimizer.state_dict(),
                "callbacks": self.callbacks.state_dict(),
            }
        )

    def resume(self, *callbacks, saved=None, **params):
        """A new driver with the progress of this one, or as saved, whose training begins."""
        saved = self.save() if saved is None else copy.deepcopy(saved)
        other = Driver(steps=self.steps)
        other.state.load_state_dict(saved["state"])
        other.handler.module.load_state_dict(saved["model"])
        other.handler.optimizer.load_state_dict(saved["optimizer"])
        other.callbacks.load_state_dict(saved["callbacks"])
        for callback in callbacks:
            other.callbacks.add(callback)
        other.begin(resumed=True, **params)
        return other


@pytest.fixture
def drive():
    """Makes drivers."""
    return Driver


@pytest.fixture
def no_file_longer_than():
    """Inside ``with`` writing beyond a number of bytes fails in the middle, as on a full disk."""

    @contextlib.contextmanager
    def limit(num_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


# ---- trackers -----------------------------------------------------------------------------------


class InTensorBoard:
    """Makes a logger, and reads what its run holds with TensorBoard's own reader."""

    exact = False  # TensorBoard keeps 32 bits

    def make(self, **options):
        return fitkit.TensorBoardLogger("tb", **options)

    def open(self, run_id):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        # nothing thinned out, and nothing tidied up that should not be there
        reader = EventAccumulator(
            f"tb/{run_id}", size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False
        )
        return reader.Reload()

    def read(self, run_id):
        reader = self.open(run_id)
        names = reader.Tags()["scalars"]
        return {name: [(one.step, one.value) for one in reader.Scalars(name)] for name in names}

    def status(self, run_id):
        from tensorboard.plugins.hparams import metadata

        name = metadata.SESSION_END_INFO_TAG
        found = self.open(run_id)
        assert len(found.Tensors(name)) == 1
        content = found.SummaryMetadata(name).plugin_data.content
        return {1: "finished", 2: "failed"}[
            metadata.parse_session_end_info_plugin_data(content).status
        ]

    def parameters(self, run_id):
        from tensorboard.plugins.hparams import metadata

        content = self.open(run_id).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data
        found = metadata.parse_session_start_info_plugin_data(content.content).hparams
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


class InMLflow:
    """The same of MLflow's local database."""

    exact = True

    def __init__(self, client):
        self.client = client

    def make(self, **options):
        return fitkit.MLflowLogger("fitkit", tracking_uri=self.client.tracking_uri, **options)

    def read(self, run_id):
        names = self.client.get_run(run_id).data.metrics
        history = {name: self.client.get_metric_history(run_id, name) for name in names}
        return {n: sorted((one.step, one.value) for one in found) for n, found in history.items()}

    def status(self, run_id):
        return self.client.get_run(run_id).info.status.lower()

    def parameters(self, run_id):
        return self.client.get_run(run_id).data.params


class InWandb:
    """The same of W&B's offline files: all segments of a run, in their order."""

    exact = True

    def make(self, **options):
        return fitkit.WandbLogger("fitkit", mode="offline", dir=".", **options)

    def segments(self, run_id):
        files = [path / f"run-{run_id}.wandb" for path in Path("wandb").glob("offline-run-*")]
        written = {path: path.stat().st_mtime_ns for path in files if path.exists()}
        return sorted(written, key=written.__getitem__)  # a segment ends before the next begins

    def read(self, run_id):
        found = {}
        for path in self.segments(run_id):
            for step, values in WandbFile(path).read_steps().items():
                for name in values.keys() - {"_timestamp", "_runtime"}:
                    found.setdefault(name, []).append((step, values[name]))
        return found

    def records(self, run_id, kind):
        from wandb.proto.wandb_internal_pb2 import Record

        for path in self.segments(run_id):
            for content in WandbFile(path).read_records():
                record = Record.FromString(content)
                if record.WhichOneof("record_type") == kind:
                    yield getattr(record, kind)

    def status(self, run_id):
        *_, last = self.records(run_id, "exit")
        return {0: "finished", 1: "failed", 255: "killed"}[last.exit_code]

    def parameters(self, run_id):
        import json

        updates = [update for one in self.records(run_id, "config") for update in one.update]
        return {update.key: json.loads(update.value_json) for update in updates}


@pytest.fixture(params=["tensorboard", "mlflow", "wandb"])
def tracker(request, tmp_path, monkeypatch):
    """Makes loggers of one kind that write into a folder of the test, and reads what they wrote."""
    monkeypatch.chdir(tmp_path)
    if request.param == "mlflow":
        return InMLflow(request.getfixturevalue("mlflow_store"))
    return InTensorBoard() if request.param == "tensorboard" else InWandb()


@pytest.fixture
def readers():
    """Readers of all trackers, given the file of MLflow's database."""

    def _readers(database):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{database.resolve()}")
        return [InTensorBoard(), InMLflow(client), InWandb()]

    return _readers


@pytest.fixture
def trained():
    """Trains a small handler for two epochs with callbacks."""

    def _trained(*callbacks):
        handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_loss_fn(nn.MSELoss())
        data = (torch.ones(4, 2), torch.zeros(4, 1))
        handler.fit(data, batch_size=2, epochs=2, callbacks=callbacks, progress_bar=False)
        return handler

    return _trained
