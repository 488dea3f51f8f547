"""The calls that ``CudaGraphs`` makes; what they do on a GPU is for tests/scripts/on_cuda.py."""

from contextlib import contextmanager

import pytest
import torch

from fitkit.core.errors import ConfigurationError
from fitkit.runtime.graphs import CudaGraphs, make_graphs

CUDA = torch.device("cuda")


class FakeStream:
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def wait_stream(self, other):
        self.notes.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self):
        self.replayed = 0
        self.generators = []

    def replay(self):
        self.replayed += 1

    def register_generator_state(self, generator):
        self.generators.append(generator)


@pytest.fixture
def notes(monkeypatch):
    notes = []
    usual = FakeStream("usual", notes)

    @contextmanager
    def on(stream):
        notes.append(f"on {stream.name}")
        yield
        notes.append("back")

    @contextmanager
    def graph(found, *, stream, capture_error_mode):
        notes.append(f"recording on {stream.name}, {capture_error_mode}")
        yield
        notes.append("recorded")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", notes))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: usual)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    return notes


def test_steps_that_are_not_replayed_run_between_two_waits(notes):
    with make_graphs(CUDA).aside():
        notes.append("step")
    assert notes == [
        "side waits for usual",
        "on side",
        "step",
        "back",
        "usual waits for side",
    ]


def test_work_is_recorded_on_the_stream_of_those_steps(notes):
    replay, result = CudaGraphs(CUDA).record(lambda: notes.append("work") or 5, [])
    assert notes == ["recording on side, thread_local", "work", "recorded"]
    assert result == 5
    replay()
    assert replay.__self__.replayed == 1


def test_generators_on_the_device_are_registered(notes):
    class OnDevice:
        device = CUDA

    mine = OnDevice()
    replay, _ = CudaGraphs(CUDA).record(lambda: None, [torch.Generator(), mine])
    assert replay.__self__.generators == [mine]


def test_without_cuda_there_are_none():
    with pytest.raises(ConfigurationError, match="this handler is on 'cpu': leave capture out"):
        make_graphs(torch.device("cpu"))
