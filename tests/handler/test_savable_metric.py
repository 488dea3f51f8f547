"""A metric whose state no checkpoint could hold is refused when it is added."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from fitkit import Accuracy, ConfigurationError, NNHandler
from fitkit.handler.savable_metric import require_savable_metric


class Extra:
    """Accumulates in its attributes."""

    def __init__(self):
        self.seen = []

    def update(self, outputs, targets):
        self.seen.append(outputs)

    def compute(self):
        return 0.0

    def reset(self):
        self.seen = []


@pytest.mark.parametrize(
    "value", [threading.Lock(), nn.Linear(1, 1), Extra(), [{"deep": threading.Lock()}]]
)
def test_what_cannot_be_saved_is_refused_when_the_metric_is_added(value):
    metric = Extra()
    metric.extra = value
    handler = NNHandler(nn.Linear, in_features=2, out_features=1)
    with pytest.raises(
        ConfigurationError, match=r"metric 'm'.*attribute 'extra'.*give Extra state_dict"
    ):
        handler.add_metric("m", metric)
    assert handler.parts.metrics == {}


class SavesItself(Extra):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("metric", [Extra(), Accuracy(), SavesItself(), lambda o, t: o.mean()])
def test_others_pass(metric):
    if isinstance(metric, SavesItself):
        metric.lock = threading.Lock()  # what it saves is its own affair
    require_savable_metric("m", metric)
