"""Batches that are no pair of tensors, in fit, evaluate and predict, against plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from fitkit import DataError, NNHandler

LR = 0.1
COMPILE = {"backend": "eager"}


@pytest.fixture(autouse=True)
def _forget_graphs():
    """Leave other tests their share of the graphs that torch keeps of one function."""
    yield
    torch._dynamo.reset()


def make(model, loss=None, **options):
    handler = NNHandler(model, "cpu", seed=0, **options)
    handler.set_optimizer(torch.optim.SGD, lr=LR)
    handler.set_loss_fn(nn.MSELoss() if loss is None else loss)
    return handler


def train_plainly(model, call, batches, loss=None):
    """Weights of the model after a step per batch of a plain loop."""
    loss = nn.MSELoss() if loss is None else loss
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(call(model, inputs), targets).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_trained_alike(handler, expected):
    for found, right in zip(handler.module.parameters(), expected, strict=True):
        assert torch.equal(found, right)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- PackedSequence -----------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5), nn.Linear(5, 2)

    def forward(self, packed, scale=None):
        assert isinstance(packed, PackedSequence)
        outputs = self.out(self.rnn(packed)[1][0])
        return outputs if scale is None else outputs * scale


PACKED = [pack_sequence([numbers(n, 3, seed=n) for n in (4, 2, 1)]) for _ in range(2)]
CLASSES = torch.tensor([0, 1, 0])


@pytest.mark.parametrize("nested", [False, True])
def test_a_packed_sequence_stays_one(nested):
    scale = torch.full((3, 1), 2.0)
    batches = [((packed, scale) if nested else packed, CLASSES) for packed in PACKED]
    loss = nn.CrossEntropyLoss()
    handler = make(Recurrent, loss)
    plain = NNHandler(Recurrent, "cpu", seed=0).module

    def call(model, inputs):
        return model(*inputs) if nested else model(inputs)

    expected = train_plainly(plain, call, batches, loss)
    handler.fit(batches, epochs=1, progress_bar=False)
    assert_trained_alike(handler, expected)
    with torch.no_grad():
        outputs = torch.cat([call(plain, inputs) for inputs, _ in batches])
        losses = [float(loss(call(plain, inputs), targets)) for inputs, targets in batches]
    assert torch.equal(handler.predict(batches), outputs)
    assert torch.equal(handler.predict([(inputs,) for inputs, _ in batches]), outputs)
    assert handler.evaluate(batches)["loss"] == pytest.approx(sum(losses) / 2)
    assert "(3, 2)" in str(handler.summary(batches[0]))
    if not nested:
        assert torch.equal(handler.predict(PACKED), outputs)
        assert "(3, 2)" in str(handler.summary(PACKED[0]))


def pack(samples):
    sequences, targets = zip(*samples, strict=True)
    return pack_sequence(list(sequences), enforce_sorted=False), torch.tensor(targets)


class Sequences(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return numbers(index + 1, 3, seed=index), index % 2


def test_packed_by_a_collate_fn_given_to_fit():
    handler, same = make(Recurrent, nn.CrossEntropyLoss()), make(Recurrent, nn.CrossEntropyLoss())
    options = {"epochs": 2, "shuffle": False, "batch_size": 2, "progress_bar": False}
    handler.fit(Sequences(), collate_fn=pack, validation_data=Sequences(), **options)
    same.set_train_loader(Sequences(), batch_size=2, shuffle=False, collate_fn=pack)
    same.fit(epochs=2, progress_bar=False)
    assert_trained_alike(handler, list(same.module.parameters()))
    assert handler.history.history["val_loss"]


# ---- no targets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compile": COMPILE}])
def test_a_loss_without_targets_gets_none(options):
    x = numbers(4, 2)
    received = []

    def loss(outputs, targets):
        received.append(targets)
        return outputs.square().mean()

    handler = make(nn.Linear, loss, in_features=2, out_features=1)
    plain = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1).module
    expected = train_plainly(
        plain, lambda model, inputs: model(inputs), [(x, None)] * 2, lambda o, t: o.square().mean()
    )
    handler.fit([(x, None)] * 2, epochs=1, progress_bar=False, **options)
    for found, right in zip(handler.module.parameters(), expected, strict=True):
        assert torch.allclose(found, right)
    assert handler.evaluate([(x, None)])["loss"] == pytest.approx(
        float(plain(x).square().mean().detach())
    )
    assert set(received) == {None}


# ---- one list, several inputs -------------------------------------------------------------------


class Detector(nn.Module):
    """Takes one list of images of any sizes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        assert isinstance(images, (list, tuple))
        return torch.stack([image.mean() * self.weight for image in images]).unsqueeze(1)


class DeclaredDetector(Detector):
    def forward(self, images: list[Tensor], targets=None):
        assert targets is None
        return super().forward(images)


IMAGES = [[numbers(3, n, n, seed=n) for n in sizes] for sizes in ((4, 5, 6), (7, 4), (3,))]
IMAGE_BATCHES = [(images, torch.full((len(images), 1), 0.5)) for images in IMAGES]


@pytest.mark.parametrize("model", [Detector, DeclaredDetector])
@pytest.mark.parametrize("container", [list, tuple])
def test_a_model_of_one_list(model, container):
    batches = [(container(images), targets) for images, targets in IMAGE_BATCHES]
    handler, plain = make(model), model()
    expected = train_plainly(plain, lambda m, images: m(images), IMAGE_BATCHES)
    # a tuple of images is not seen to be one of samples
    options = {"num_samples": lambda batch: len(batch[1])}
    handler.fit(batches, epochs=1, progress_bar=False, **options)
    assert_trained_alike(handler, expected)
    with torch.no_grad():
        outputs = torch.cat([plain(images) for images in IMAGES])
    assert outputs.shape == (6, 1)
    assert torch.equal(handler.predict(batches), outputs)
    assert torch.equal(handler.predict([(images,) for images in IMAGES]), outputs)
    if model is DeclaredDetector:
        assert torch.equal(handler.predict(IMAGES), outputs), "batches that are lists of inputs"
    right = float((outputs - 0.5).square().mean())
    assert handler.evaluate(batches, **options)["loss"] == pytest.approx(right)


class PerImage(DeclaredDetector):
    def forward(self, images: list[Tensor], targets=None):
        return [{"mean": image.mean()} for image in images]


def test_lists_of_images_give_an_object_for_each():
    """Also where as many images as channels could be taken for a batch of rows."""
    for images in (IMAGES, [[numbers(3, 4, 4)] * 2, [numbers(3, 4, 4)]]):
        found = make(PerImage).predict(images)
        expected = [float(image.mean()) for batch in images for image in batch]
        assert [float(one["mean"]) for one in found] == pytest.approx(expected)


def test_a_count_that_is_not_certain_is_said_once_for_all_batches():
    images = (numbers(3, 4, 4), numbers(3, 5, 5))
    with pytest.warns(UserWarning, match="are counted") as caught:
        make(PerImage).predict([(images, numbers(2, 1))] * 3, tensors_only=True)
    assert len(caught) == 1


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, a, b):
        return self.linear(a) + b


class MayBeTwo(Two):
    def forward(self, a, b=None):
        return super().forward(a, b)


class PairsOfInputs(Dataset):
    """``((a, b), y)``, of which ``default_collate`` makes ``[[a, b], y]``."""

    def __init__(self):
        self.a, self.b, self.y = numbers(6, 2), numbers(6, 1, seed=1), numbers(6, 1, seed=2)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return (self.a[index], self.b[index]), self.y[index]


@pytest.mark.parametrize("model", [Two, MayBeTwo])
@pytest.mark.parametrize("workers", [0, 1])
def test_collated_pairs_of_inputs_are_two_arguments(model, workers):
    data = PairsOfInputs()
    batches = [((data.a[i : i + 2], data.b[i : i + 2]), data.y[i : i + 2]) for i in (0, 2, 4)]
    plain = NNHandler(model, "cpu", seed=0).module
    expected = train_plainly(plain, lambda m, inputs: m(*inputs), batches)
    outputs = plain(data.a, data.b).detach()
    loader = DataLoader(data, batch_size=2, num_workers=workers)
    for given, options in ((loader, {}), (batches, {}), (batches, {"compile": COMPILE})):
        handler = make(model)
        handler.fit(given, epochs=1, progress_bar=False, **options)
        assert_trained_alike(handler, expected)
        assert torch.allclose(handler.predict(given), outputs)
        assert torch.allclose(handler.predict([(inputs,) for inputs, _ in batches]), outputs)


def test_a_list_that_may_be_one_argument_or_two():
    data = PairsOfInputs()
    batches = [([data.a, data.b], data.y)]  # as default_collate makes them
    for model in (MayBeTwo, Two):
        make(model).fit(batches, progress_bar=False)
    images = [([numbers(3, 4, 4), numbers(1, 5, 5)], numbers(2, 1))]
    with pytest.raises(DataError, match="may be one argument or several"):
        make(MayBeTwo).fit(images, progress_bar=False)


class Unannotated(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def test_collated_pairs_are_inputs_with_targets_also_for_a_model_that_may_take_a_list():
    data = torch.utils.data.TensorDataset(numbers(4, 2), numbers(4, 1, seed=1))
    handler = make(Unannotated, in_features=2, out_features=1)
    expected = handler.module(data.tensors[0]).detach()
    lists = list(DataLoader(data, 2))
    own = DataLoader(data, 2, collate_fn=lambda samples: default_collate(samples))
    loaders = (DataLoader(data, 2), DataLoader(data, 2, num_workers=1), own)
    for given in (*loaders, lists, [[x] for x, _ in lists], data, data.tensors):
        assert torch.allclose(handler.predict(given), expected)
    handler.set_val_loader(data)
    assert torch.allclose(handler.predict(None), expected)


# ---- graphs, named tuples and dataclasses -------------------------------------------------------


@dataclass
class Graphs:
    """A batch of graphs, as torch_geometric has it."""

    x: Tensor
    batch: Tensor
    y: Tensor | None = None
    moved: int = 0

    @property
    def num_graphs(self):
        return int(self.batch.max()) + 1

    def to(self, device):
        y = None if self.y is None else self.y.to(device)
        return Graphs(self.x.to(device), self.batch.to(device), y, self.moved + 1)


class GraphModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, graphs):
        assert graphs.moved == 1
        nodes = self.linear(graphs.x)
        return torch.zeros(graphs.num_graphs, 1).index_add(0, graphs.batch, nodes)


def graphs(sizes, seed):
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Graphs(numbers(sum(sizes), 2, seed=seed), batch, numbers(len(sizes), 1, seed=seed + 9))


@pytest.mark.parametrize("paired", [False, True])
def test_graphs_are_one_argument_and_have_their_targets(paired):
    plain = NNHandler(GraphModel, "cpu", seed=0).module
    batches = [graphs((3, 1, 2), 1), graphs((5,), 2)]
    pairs = [(batch, batch.y) for batch in batches]

    def call(model, batch):
        return model(batch.to("cpu"))

    expected = train_plainly(plain, call, pairs)
    given = pairs if paired else batches
    handler = make(GraphModel)
    handler.fit(given, epochs=1, progress_bar=False)
    assert_trained_alike(handler, expected)
    with torch.no_grad():
        outputs = torch.cat([call(plain, batch) for batch in batches])
        losses = [float(nn.functional.mse_loss(call(plain, b), b.y)) for b in batches]
    assert torch.equal(handler.predict(given), outputs)
    assert handler.evaluate(given)["loss"] == pytest.approx((3 * losses[0] + losses[1]) / 4)


class Named(NamedTuple):
    nodes: Tensor
    edges: Tensor


@dataclass
class Plain:
    nodes: Tensor
    labels: Tensor


class OfObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, batch):
        return self.linear(batch.nodes)


def test_a_named_tuple_or_a_dataclass_is_one_argument_of_a_model_of_one():
    x, y = numbers(4, 2), numbers(4, 1, seed=1)
    handler = make(OfObject)
    outputs = handler.module.linear(x).detach()
    assert torch.equal(handler.predict([(Named(x, y), y)]), outputs)
    assert torch.equal(handler.predict([Plain(x, y)]), outputs)
    expected = float(nn.functional.mse_loss(outputs, y))
    assert handler.evaluate([Plain(x, y)])["loss"] == pytest.approx(expected)
    assert handler.evaluate([(Named(x, y), y)])["loss"] == pytest.approx(expected)
