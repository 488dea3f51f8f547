"""A stand-in for the handler and its loop: callbacks hear events, nothing is trained."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fitkit.callbacks.history import History
from fitkit.core.callback_list import CallbackList, Event
from fitkit.core.fetch_clock import FetchClock
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
        self.ema = None
        self.gradient_accumulation_steps = 1
        self.contributed = {}
        self.device = torch.device("cpu")
        self.clock = FetchClock()

    def time_fetching(self):
        return self.clock

    def set_weight(self, value):
        with torch.no_grad():
            self.module.weight.fill_(value)

    @property
    def weight(self):
        return self.module.weight.item()

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def scored_weights(self):
        return copy.deepcopy(self.module.state_dict())

    def restore_weights(self, weights):
        self.module.load_state_dict(weights)

    def log(self, name, value):
        self.contributed[name] = value

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
        self.handler.contributed = {}
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
        self.callbacks.fire(Event.EPOCH_END, epoch, Logs({**logs, **self.handler.contributed}))

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
