from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fitkit
from fitkit.runtime.copy_ahead import CopyAhead, CudaCopyStream, make_place
from fitkit.runtime.device import to_device
from fitkit.testing import assert_resumes_exactly

META = torch.device("meta")


class Stream:
    """Stands in for a stream: notes what happens where."""

    def __init__(self):
        self.notes = []
        self.inside = False

    @contextmanager
    def aside(self):
        self.inside = True
        yield
        self.inside = False

    def join(self, copies):
        assert not self.inside
        self.notes.append(len(copies))


def test_tensors_of_the_host_are_copied_aside_and_waited_for():
    stream, seen = Stream(), []

    class Knows:
        def to(self, device):
            seen.append((stream.inside, device))
            return "moved"

    there = torch.ones(2, device=META)
    batch = {"x": (torch.ones(3), there), "y": torch.ones(2), "other": Knows(), "name": "a"}
    moved = CopyAhead(META, stream)(batch)
    assert [moved["x"][0].device, moved["y"].device] == [META, META]
    assert moved["x"][1] is there
    assert (moved["other"], moved["name"]) == ("moved", "a")
    assert seen == [(False, META)], "what moves itself does so where it is used"
    assert stream.notes == [2], "one wait, for both copies"


def test_nothing_to_copy_is_nothing_to_wait_for():
    stream = Stream()
    batch = (torch.ones(2, device=META), "name")
    assert CopyAhead(META, stream)(batch)[0] is batch[0]
    assert stream.notes == []


def test_on_the_cpu_nothing_changes():
    place = make_place(torch.device("cpu"))
    assert place.func is to_device
    batch = [torch.ones(2)]
    assert place(batch)[0] is batch[0]


class Noted:
    """Stands in for ``torch.cuda``: every call is written down."""

    def __init__(self, notes, name="", device=None):
        self.notes, self.name = notes, name

    def wait_stream(self, other):
        self.notes.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def of(self, stream):
        self.notes.append(f"on {stream.name}")
        yield


def test_the_order_of_calls_on_cuda(monkeypatch):
    notes = []
    computing = Noted(notes, "computing")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Noted(notes, "copying"))
    monkeypatch.setattr(torch.cuda, "stream", computing.of)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    record = lambda tensor, stream: notes.append(f"kept for {stream.name}")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    assert isinstance(make_place(torch.device("cuda")), CopyAhead)
    CopyAhead(META, CudaCopyStream(META))((torch.ones(2), torch.ones(3)))
    assert notes == [
        "on copying",
        "computing waits for copying",
        "kept for computing",
        "kept for computing",
    ]


# ---- nothing else moves -------------------------------------------------------------------------


class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.randn(3) + index, index % 2


def make_handler():
    handler = fitkit.NNHandler(small_net(), "cpu", seed=3)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader(Draws(), batch_size=3)
    handler.set_val_loader(TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
    return handler


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.4), nn.Linear(8, 2))


@pytest.mark.usefixtures("fast_scratch")
def test_a_run_whose_copies_run_ahead_resumes_exactly_at_every_boundary(monkeypatch):
    usual = make_handler()
    usual.fit(epochs=2, progress_bar=False)
    streams = []

    class Copying(CopyAhead):
        """Copies even though the device is the one that the batch is on."""

        def _copied(self, leaf, copies):
            copies.append(leaf.clone())
            return copies[-1]

    def make_copying(device):
        streams.append(Stream())
        return Copying(device, streams[-1])

    monkeypatch.setattr("fitkit.evaluating.make_place", make_copying)
    ahead = make_handler()
    ahead.fit(epochs=2, progress_bar=False)
    assert usual.history.history == ahead.history.history
    assert sum(len(stream.notes) for stream in streams) == 2 * (4 + 1)
    assert_resumes_exactly(make_handler, epochs=2)
