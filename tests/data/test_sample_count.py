"""How many samples a batch has: who says it, and what is said where two do not agree."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fitkit import ConfigurationError, DataError, NNHandler, StepOutput
from fitkit.core.types import Share
from fitkit.data.sample_count import SampleCount, declared_size

ONES = torch.ones


class Graphs:
    """A batch of graphs as a library has it: an object, no container of tensors."""

    def __init__(self, num_graphs, num_nodes):
        self.num_graphs = num_graphs
        self.x = ONES(num_nodes, 2)

    def to(self, device):
        return self


@dataclass
class Fields:
    text: str
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Sized:
    x: torch.Tensor
    batch_size: int


SILENT = {
    "tensor": (ONES(3, 2), 3),
    "pair": ((ONES(3, 2), ONES(3)), 3),
    "collated pair": ([ONES(3, 2), ONES(3)], 3),
    "mapping": ({"x": ONES(3, 2), "y": ONES(3)}, 3),
    "scalar beside it": ({"lr": ONES(()), "x": ONES(3, 2)}, 3),
    "several inputs": (((ONES(3, 2), ONES(3, 5)), ONES(3)), 3),
    "collated inputs": ([[ONES(3, 2), ONES(3, 5)], ONES(3)], 3),
    "collated mappings": ([{"x": ONES(3, 2)}, {"y": ONES(3)}], 3),
    "dataclass": (Fields("a", ONES(3, 2), ONES(3)), 3),
    "sized dataclass": (Sized(ONES(7, 2), 3), 3),
    "packed": (pack_sequence([ONES(n, 2) for n in (4, 2, 1)]), 3),
    "packed and targets": ((pack_sequence([ONES(n, 2) for n in (4, 2, 1)]), ONES(3)), 3),
    "graphs": (Graphs(3, 9), 3),
    "graphs and targets": ((Graphs(3, 9), ONES(3)), 3),
    "tensor dict": (SimpleNamespace(batch_size=torch.Size([3, 2])), 3),
    "list of images": (([ONES(3, 8, 8)] * 4, ONES(4)), 4),
    "list of images of one size": (([ONES(3, 8, 8)] * 2, ONES(2, 1)), 2),
    "images and their boxes": (
        (tuple(ONES(3, n, 8) for n in (8, 9)), ({"boxes": ONES(1, 4)}, {"boxes": ONES(5, 4)})),
        2,
    ),
    "one image and its three boxes": (
        ((ONES(3, 8, 8),), ({"boxes": ONES(3, 4), "labels": ONES(3)},)),
        1,
    ),
    "lists of images and of boxes": (
        ([ONES(3, 8, 8), ONES(3, 9, 8)], [{"boxes": ONES(3, 4)}, {"boxes": ONES(1, 4)}]),
        2,
    ),
    "samples and scalar labels": (
        (tuple(ONES(3) for _ in range(4)), tuple(torch.tensor(1.0) for _ in range(4))),
        4,
    ),
    "list of pairs": ([(ONES(3), ONES(())), (ONES(3), ONES(()))], 2),
    "list of mappings": ([{"x": ONES(5)}, {"x": ONES(7)}, {"x": ONES(5)}], 3),
    "texts": ((["a", "bc"], ONES(2)), 2),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_batch_says_how_many_samples_it_has(name):
    batch, size = SILENT[name]
    assert SampleCount().of(batch) == size
    assert SampleCount().of(batch, size) == size


SAID = {
    "offsets": (((ONES(10), torch.tensor([0, 5])), ONES(2, 1)), 2, "2 .* targets, and 10"),
    "time first": ((ONES(7, 8, 1), ONES(8)), 8, "8 .* targets, and 7"),
    "images without targets": ([[ONES(3, 8, 8), ONES(3, 9, 9)]], 2, "2 .* itself, and 3"),
    "unknown object": (SimpleNamespace(x=ONES(3)), 1, "does not say .* 1 is counted"),
    "no tensor": ("text", 1, "does not say"),
    "scalar": (ONES(()), 1, "does not say"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_not_certain_is_said_once(name):
    batch, size, sentence = SAID[name]
    count = SampleCount()
    with pytest.warns(UserWarning, match=f"(?s){sentence}.*pass num_samples="):
        assert count.of(batch) == size
    assert count.of(batch) == size  # warnings are errors


def test_the_indices_of_a_loader_come_first_and_a_difference_is_said():
    count = SampleCount()
    with pytest.warns(UserWarning, match="8 samples by the loader's indices, and 7 by the first"):
        assert count.of(ONES(7, 8, 1), 8) == 8
    assert count.of(ONES(7, 8, 1), 8) == 8
    assert SampleCount().of((ONES(7, 8, 1), ONES(8)), 8) == 8  # the targets confirm it


def test_a_list_as_long_as_the_indices_confirms_them():
    for size in (1, 2, 3, 5):
        images = [ONES(3, 8, 8)] * size
        assert SampleCount().of(images, size) == size
        assert SampleCount().of((tuple(images), tuple([ONES(7)] * size)), size) == size
        assert SampleCount().of((tuple(images), tuple([ONES(1)] * size)), size) == size


@pytest.mark.parametrize("indices", [None, 8])
def test_a_function_that_something_confirms_wins(indices):
    text = (ONES(10), torch.tensor([0, 5, 7]))
    assert SampleCount(lambda batch: len(batch[1])).of(text) == 3
    filtered = (ONES(7, 2), ONES(7))  # collate_fn left a sample out
    assert SampleCount(lambda batch: len(batch[1])).of(filtered, indices) == 7


def test_a_function_that_nothing_confirms_is_said():
    count = SampleCount(lambda batch: 3)
    with pytest.warns(UserWarning, match="4 samples by the loader's indices, and 3 by num_samples"):
        assert count.of((ONES(5, 2), ONES(5)), 4) == 4


@pytest.mark.parametrize("value", [2.5, "3", None, -1, True, ONES(2)])
def test_a_function_must_return_a_number(value):
    with pytest.raises(DataError, match=r"num_samples must return .* a whole number"):
        SampleCount(lambda batch: value).of(ONES(3, 2))


@pytest.mark.parametrize("value", [torch.tensor(3), torch.ones(1).long() * 3])
def test_a_function_may_return_a_tensor(value):
    assert SampleCount(lambda batch: value).of(ONES(3, 2)) == 3


@pytest.mark.parametrize("batch", [ONES(0, 2), (ONES(0), ONES(0)), Graphs(0, 0)])
def test_an_empty_batch_is_an_error(batch):
    with pytest.raises(DataError, match=r"holds no sample .*leave empty batches out"):
        SampleCount().of(batch)


@pytest.mark.parametrize("given", [3, "x", [1]])
def test_what_is_no_function_is_refused_at_once(given):
    handler = NNHandler(torch.nn.Identity(), "cpu")
    for call in (
        lambda: handler.set_train_loader(ONES(3), num_samples=given),
        lambda: handler.set_val_loader(ONES(3), num_samples=given),
        lambda: handler.evaluate(ONES(3), num_samples=given),
    ):
        with pytest.raises(ConfigurationError, match="num_samples must be a function"):
            call()


def test_shares():
    batch = (ONES(3, 2), ONES(3))
    count, function = SampleCount(), SampleCount(lambda batch: 3)
    assert count.share_in(batch, None) == Share(3, 3)
    assert count.share_in(batch, Share(3, 5)) == Share(3, 5)
    assert count.share_in(batch, Share(0, 3)) == Share(0, 3)
    assert count.share_in(batch, Share(None, None)) == Share(3, None)
    # every rank must know whether the others know its count
    assert function.share_in(batch, Share(3, 5)) == Share(3, None)
    assert function.share_in(batch, Share(0, 3)) == Share(0, None)


class Whole(Dataset):
    """Whole batches, for a DataLoader with batch_size=None."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        size, value = ((6, 1.0), (2, 5.0))[index]
        return torch.full((size, 1), value), torch.zeros(size, 1)


def flat_text(samples):
    """Text of several samples as one tensor with offsets; the targets are at the end."""
    lengths = [len(x) for x, _ in samples]
    offsets = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return torch.cat([x for x, _ in samples]), offsets, torch.stack([y for _, y in samples])


TEXTS = [(ONES(n), torch.tensor(float(value))) for n, value in ((5, 1), (5, 1), (30, 4))]


def mean_of_last(handler, batch):
    return batch[-1].mean() + 0 * next(handler.module.parameters()).sum()


@pytest.fixture
def handler():
    handler = NNHandler(torch.nn.Linear, "cpu", in_features=1, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.0)
    handler.set_train_step(mean_of_last)
    return handler


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_counts_what_it_read(handler, num_workers):
    loader = DataLoader(TEXTS, batch_size=2, collate_fn=flat_text, num_workers=num_workers)
    with pytest.warns(UserWarning, match="2 samples by the loader's indices, and 10 by the first"):
        assert handler.evaluate(loader)["loss"] == 2.0
    count = lambda batch: len(batch[1])  # noqa: E731
    assert handler.evaluate(loader, num_samples=count)["loss"] == 2.0
    handler.fit(loader, num_samples=count, progress_bar=False)
    assert handler.history.history["loss"] == [2.0]
    assert handler.state.samples_seen == 3


def test_num_samples_beside_the_data_that_are_set(handler):
    count = lambda batch: len(batch[1])  # noqa: E731
    batches = [flat_text(TEXTS[:2]), flat_text(TEXTS[2:])]
    handler.set_train_loader(batches, num_samples=count)
    handler.set_val_loader(batches, num_samples=count)
    history = handler.fit(progress_bar=False).history
    assert history["loss"] == history["val_loss"] == [2.0]
    assert handler.evaluate()["loss"] == 2.0


def test_whole_batches_of_a_dataset(handler):
    handler.set_train_step(lambda h, b: StepOutput(b[0].mean() + 0 * h.module.weight.sum()))
    history = handler.fit(DataLoader(Whole(), batch_size=None), progress_bar=False).history
    assert history["loss"] == [2.0]
    assert handler.state.samples_seen == 8


def test_batches_that_arrive_out_of_order_count_by_themselves(handler):
    data = TensorDataset(torch.arange(5.0).reshape(5, 1), torch.arange(5.0))
    loader = DataLoader(data, batch_size=2, num_workers=2, in_order=False)
    assert handler.evaluate(loader)["loss"] == 2.0


def test_declared_size_of_collated_parts_is_none():
    assert declared_size([[ONES(3, 2), ONES(3, 5)], ONES(3)]) == (None, False)
