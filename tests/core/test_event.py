"""The events, and the order in which a run fires them; names are in test_conventions.py."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch import nn

from fitkit import Callback, Event, NNHandler


@pytest.mark.parametrize("event", Event)
def test_an_event_is_the_name_of_its_hook(event):
    assert event == f"on_{event.name.lower()}"
    assert Event(event.value) is event
    assert pickle.loads(pickle.dumps(event)) is event
    assert callable(getattr(Callback(), event.value))


@pytest.mark.parametrize("name", ["on_lunch", "TRAIN_BEGIN", "", None])
def test_another_name_is_no_event(name):
    with pytest.raises(ValueError, match="is not a valid Event"):
        Event(name)


class Recorder(Callback):
    def __init__(self):
        self.heard = []
        for event in Event:
            setattr(self, event.value, lambda *_, event=event: self.heard.append(event))


@pytest.fixture
def heard():
    """What a run of two epochs of four batches fires, with a window of two batches."""
    handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    recorder, data = Recorder(), (torch.zeros(4, 1), torch.zeros(4, 1))
    options = {"validation_data": data, "gradient_accumulation_steps": 2, "progress_bar": False}
    handler.fit(data, epochs=2, batch_size=1, callbacks=[recorder], **options)
    return recorder.heard


def test_what_begins_ends_inside_what_is_around_it(heard):
    open_events = []
    for event in heard:
        kind, _, moment = event.name.rpartition("_")
        if moment == "BEGIN":
            open_events.append(kind)
        else:
            assert open_events.pop() == kind
    assert open_events == []
    assert (heard[0], heard[-1]) == (Event.TRAIN_BEGIN, Event.TRAIN_END)
    assert heard.count(Event.OPTIMIZER_STEP_END) == 4
    assert heard.count(Event.TEST_END) == 2


def test_each_event_is_inside_what_the_diagram_says(heard):
    depth, parents, drawn = [], {}, inspect.getdoc(Event).splitlines()
    for line in (line for line in drawn if "─ on_" in line):
        before, _, rest = line.partition("on_")
        depth = [entry for entry in depth if entry[0] < len(before)]
        parents[f"on_{rest.split()[0]}"] = depth[-1][1] if depth else None
        depth.append((len(before), f"on_{rest.split()[0]}"))
    around = []
    for event in heard:
        if event.value.endswith("_begin"):
            assert parents[event.value] == (around[-1] if around else None)
            around.append(event.value)
        else:
            around.pop()
