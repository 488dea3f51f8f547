"""One program for each row of the table in docs/batches.md, on one process or on several.

``python batch_kinds.py FOLDER``, or by torchrun: each rank writes its results to ``FOLDER``. The
right values are written down here by hand: each row has a few samples whose losses are known.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fitkit import NNHandler, StepOutput

VALUES = torch.tensor([[1.0], [2.0], [3.0], [4.0], [10.0]])  # the losses of five samples
ZEROS = torch.zeros(5, 1)
MEAN = 4.0


@dataclass
class Kind:
    """A kind of batches with the right values.

    Attributes:
        data: to train on and to validate on.
        loss: the right mean of the loss.
        samples: the right number of samples.
        model: returns what the loss needs.
        set_up: sets the loss or the step.
        options: of the loaders.
    """

    data: Any
    loss: float = MEAN
    samples: int = 5
    model: type[nn.Module] | Callable[[], nn.Module] = nn.Identity
    set_up: Callable[[NNHandler], None] = lambda handler: handler.set_loss_fn(nn.L1Loss())
    options: dict[str, Any] | None = None


KINDS: dict[str, Callable[[], Kind]] = {}


def kind(title: str) -> Callable[[Callable[[], Kind]], Callable[[], Kind]]:
    """Register a function as the row that begins with ``title``."""

    def register(function: Callable[[], Kind]) -> Callable[[], Kind]:
        KINDS[title] = function
        return function

    return register


class Trained(nn.Module):
    """A model with a parameter that changes nothing, around a function of the inputs."""

    def __init__(self, function: Callable[..., Tensor] = lambda x: x) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The function of the inputs."""
        return self.function(*inputs, **named) + self.weight


def step_of(loss: Callable[[Any], Any]) -> Callable[[NNHandler], None]:
    """Sets a step whose loss is a function of the batch."""

    def step(handler: Any, batch: Any) -> Any:
        result = loss(batch)
        return None if result is None else result + 0 * handler.model(torch.zeros(()))

    return lambda handler: handler.set_train_step(step)


@kind("arrays or tensors `(x, y)`")
def arrays() -> Kind:
    """In memory."""
    return Kind((VALUES, ZEROS), options={"batch_size": 2})


@kind("`Dataset`")
def dataset() -> Kind:
    """Map-style."""
    return Kind(list_dataset(list(zip(VALUES, ZEROS, strict=True))), options={"batch_size": 2})


@kind("`DataLoader`")
def loader() -> Kind:
    """With shuffling, workers and a short last batch."""
    data = TensorDataset(VALUES, ZEROS)
    return Kind(DataLoader(data, batch_size=2, shuffle=True, num_workers=1))


class Streamed(IterableDataset[Any]):
    """Samples one after the other."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(VALUES, ZEROS, strict=True))


@kind("`IterableDataset`")
def iterable() -> Kind:
    """In its own order."""
    return Kind(Streamed(), options={"batch_size": 2})


@kind("iterable of batches `(inputs, targets)`")
def batches() -> Kind:
    """Of sizes 3 and 2."""
    return Kind([(VALUES[:3], ZEROS[:3]), (VALUES[3:], ZEROS[3:])])


class Whole(Dataset[Any]):
    """Whole batches."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        part = slice(0, 3) if index == 0 else slice(3, 5)
        return VALUES[part], ZEROS[part]


@kind("`DataLoader(batch_size=None)`")
def whole() -> Kind:
    """A dataset that returns whole batches."""
    return Kind(DataLoader(Whole(), batch_size=None))


def padded(targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scores of shape (batch, classes, time) whose losses are known; two batches."""
    scores = torch.zeros(5, 2, 3)
    scores[:, 1] = torch.arange(5.0)[:, None]  # the loss of class 0 grows with the sample
    return [(scores[:2], targets[:2]), (scores[2:], targets[2:])]


def cross_entropy_of(weights: Tensor, classes: Tensor) -> float:
    """The weighted mean of the losses of ``padded``; a class of -100 has no weight."""
    growth = torch.arange(5.0, dtype=torch.float64)[:, None].expand(5, 3)
    losses = torch.log1p(growth.exp()) - growth * (classes == 1)
    used = torch.where(classes >= 0, weights[classes.clamp(min=0)].double(), 0.0)
    return float((losses * used).sum() / used.sum())


CLASSES = torch.tensor([[0, 0, 1], [0, -100, -100], [1, 0, -100], [-100] * 3, [1, 1, 0]])


@kind("padded tokens, `CrossEntropyLoss`")
def tokens() -> Kind:
    """Means over the targets that are not ``ignore_index``."""
    return Kind(
        padded(CLASSES),
        loss=cross_entropy_of(torch.ones(2), CLASSES),
        set_up=lambda handler: handler.set_loss_fn(nn.CrossEntropyLoss()),
    )


@kind("class weights, `CrossEntropyLoss(weight=...)`")
def class_weights() -> Kind:
    """Means over the weights of the classes."""
    weights = torch.tensor([1.0, 5.0])
    return Kind(
        padded(CLASSES),
        loss=cross_entropy_of(weights, CLASSES),
        set_up=lambda handler: handler.set_loss_fn(nn.CrossEntropyLoss, weight=weights),
    )


@kind("padded tokens, a loss of your own")
def own_loss() -> Kind:
    """With the weight as a function."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        mask = targets != -100
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses.sum() / mask.sum()

    return Kind(
        padded(CLASSES),
        loss=cross_entropy_of(torch.ones(2), CLASSES),
        set_up=lambda handler: handler.set_loss_fn(loss, weight=lambda o, t: (t != -100).sum()),
    )


@kind("a training step of your own")
def own_step() -> Kind:
    """That knows what its mean is over."""

    def step(handler: Any, batch: Any) -> StepOutput:
        scores, targets = batch
        loss = nn.functional.cross_entropy(handler.model(scores), targets)
        return StepOutput(loss, weight=(targets != -100).sum())

    return Kind(
        padded(CLASSES),
        loss=cross_entropy_of(torch.ones(2), CLASSES),
        set_up=lambda handler: handler.set_train_step(step),
    )


@kind("sequences of several lengths, `MSELoss` and the like")
def elements() -> Kind:
    """Means over elements: 2 * 3 of them, then 3 * 1."""
    long, short = torch.full((2, 3, 1), 1.0), torch.full((3, 1, 1), 4.0)
    data = [(long, torch.zeros_like(long)), (short, torch.zeros_like(short))]
    return Kind(data, loss=(6 * 1.0 + 3 * 4.0) / 9)


@kind("time-first sequences `(time, batch, ...)`")
def time_first() -> Kind:
    """The first dimension counts no samples."""
    data = [(VALUES[:3].T.expand(7, 3), ZEROS), (VALUES[3:].T.expand(9, 2), ZEROS)]
    return Kind(
        [x for x, _ in data],
        set_up=step_of(lambda x: x.mean()),
        options={"num_samples": lambda batch: batch.shape[1]},
    )


def flat_text(samples: list[Any]) -> Any:
    """Text as one tensor with offsets."""
    lengths = torch.tensor([0, *(len(text) for text, _ in samples[:-1])])
    text = torch.cat([text for text, _ in samples])
    return text, lengths.cumsum(0), torch.stack([target for _, target in samples])


@kind("flat text with offsets, as `nn.EmbeddingBag` takes it")
def offsets() -> Kind:
    """Three tensors of three lengths."""
    texts = [(torch.arange(n), value) for n, value in zip((5, 2, 30, 9, 1), VALUES, strict=True)]
    return Kind(
        [flat_text(texts[:3]), flat_text(texts[3:])],
        set_up=step_of(lambda batch: batch[2].mean()),
        options={"num_samples": lambda batch: len(batch[1])},
    )


@kind("`PackedSequence`")
def packed() -> Kind:
    """It stays one; its samples are known."""

    def pack(values: Tensor) -> PackedSequence:
        return pack_sequence([value.repeat(3 - i, 1) for i, value in enumerate(values)])

    def last(batch: PackedSequence) -> Tensor:
        return batch.data[: int(batch.batch_sizes[0])]

    data = [(pack(VALUES[:3]), ZEROS[:3]), (pack(VALUES[3:]), ZEROS[3:])]
    return Kind(data, model=lambda: Trained(last))


@kind("lists of images and of targets")
def images() -> Kind:
    """A list per batch, as detectors take it."""

    def collate(samples: list[Any]) -> Any:
        return [x for x, _ in samples], [{"value": y} for _, y in samples]

    data = [(torch.zeros(3, 8 + i, 8), value) for i, value in enumerate(VALUES)]
    return Kind(
        DataLoader(list_dataset(data), batch_size=2, collate_fn=collate),
        set_up=step_of(lambda batch: torch.stack([t["value"] for t in batch[1]]).mean()),
    )


def list_dataset(items: list[Any]) -> Dataset[Any]:
    """A map-style dataset over a list."""

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Items()


class Graphs:
    """A batch of graphs, as torch_geometric has it."""

    def __init__(self, y: Tensor) -> None:
        self.x = torch.zeros(11, 2)
        self.y = y
        self.num_graphs = len(y)

    def to(self, device: Any) -> Graphs:
        """The same: everything is on the CPU."""
        return self


@kind("graph batches")
def graphs() -> Kind:
    """An object with ``num_graphs``."""
    return Kind(
        [Graphs(VALUES[:3]), Graphs(VALUES[3:])], set_up=step_of(lambda batch: batch.y.mean())
    )


@dataclass
class Fields:
    """A batch as a dataclass."""

    name: str
    x: Tensor


@kind("dataclasses")
def dataclasses() -> Kind:
    """The first tensor among the fields."""
    return Kind(
        [Fields("a", VALUES[:3]), Fields("b", VALUES[3:])],
        set_up=step_of(lambda batch: batch.x.mean()),
    )


@kind('mappings such as `{"x": ..., "y": ...}`')
def mappings() -> Kind:
    """Inputs by name."""
    return Kind([{"x": VALUES[:3], "y": ZEROS[:3]}, {"x": VALUES[3:], "y": ZEROS[3:]}])


class Output(dict[str, Any]):
    """What models of transformers return."""

    __getattr__ = dict.__getitem__


class WithLoss(nn.Module):
    """A model that computes its loss from labels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        """The loss is the mean of the inputs."""
        outputs = input_ids + self.weight
        return Output(loss=None if labels is None else outputs.mean(), logits=outputs)


@kind("mappings with labels, a model that returns `.loss`")
def with_loss() -> Kind:
    """No loss function and no step."""
    halves = [{"input_ids": VALUES[:3], "labels": ZEROS[:3, 0].long()}]
    halves += [{"input_ids": VALUES[3:], "labels": ZEROS[3:, 0].long()}]
    return Kind(halves, model=WithLoss, set_up=lambda handler: None)


@kind("inputs without targets `(x, None)`")
def no_targets() -> Kind:
    """The loss gets ``(outputs, None)``."""
    return Kind(
        [(VALUES[:3], None), (VALUES[3:], None)],
        set_up=lambda handler: handler.set_loss_fn(lambda outputs, targets: outputs.mean()),
    )


class Opaque:
    """An object that says nothing of its samples."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


@kind("any other object")
def opaque() -> Kind:
    """Only the program knows."""
    return Kind(
        [Opaque(VALUES[:3]), Opaque(VALUES[3:])],
        set_up=step_of(lambda batch: batch.values.mean()),
        options={"num_samples": lambda batch: len(batch.values)},
    )


@kind("a batch to skip")
def skipped() -> Kind:
    """The step returns None."""
    nothing = torch.full((4, 1), float("nan"))
    return Kind(
        [VALUES[:3], nothing, VALUES[3:]],
        set_up=step_of(lambda x: None if x.isnan().any() else x.mean()),
    )


def run(title: str) -> dict[str, Any]:
    """The means and counts of a row, and the right ones."""
    case = KINDS[title]()
    model = case.model()
    has_parameters = any(True for _ in model.parameters())
    handler = NNHandler(model if has_parameters else Trained(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.0)
    case.set_up(handler)
    handler.set_train_loader(case.data, **(case.options or {}))
    handler.set_val_loader(case.data, **(case.options or {}))
    history = handler.fit(epochs=2, progress_bar=False).history
    return {
        "found": [*history["loss"], *history["val_loss"], handler.evaluate()["loss"]],
        "samples": handler.state.samples_seen,
        "expected": case.loss,
        "expected_samples": 2 * case.samples,
    }


def main() -> None:
    """Run all rows, and write their results."""
    warnings.filterwarnings("error", module="fitkit")  # nothing that the page says needs a warning
    results = {title: run(title) for title in KINDS}
    rank = NNHandler(nn.Linear(1, 1), "cpu").world.rank
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
