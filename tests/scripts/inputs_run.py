"""Trains on batches that are no pair of tensors, on one process or several, for test_inputs.py.

A step of two processes takes one batch each, one process takes two in an accumulation window.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, StackDataset, TensorDataset

from fitkit import NNHandler


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1, dtype=torch.float64)


class OfPacked(Base):
    def forward(self, packed, scale=None):
        assert isinstance(packed, PackedSequence)
        return self.linear(packed.data)[: packed.batch_sizes[0]]


class OfList(Base):
    def forward(self, images):
        return torch.stack([self.linear(image).mean(0) for image in images])


class OfTwo(Base):
    def forward(self, a, b=None):
        return self.linear(a) + b


class Graph:
    def __init__(self, x, y):
        self.x, self.y, self.num_graphs = x, y, len(y)

    def to(self, device):
        return Graph(self.x.to(device), self.y.to(device))


class OfGraph(Base):
    def forward(self, graph):
        return self.linear(graph.x)


def squares(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return (outputs if targets is None else outputs - targets).square().mean()


SIZES = (3, 1, 2, 2)
TARGETS = [numbers(n, 1, seed=n) for n in SIZES]
PACKED = [pack_sequence([numbers(n - i, 2, seed=i) for i in range(n)]) for n in SIZES]
LISTS = [[numbers(2 + i, 2, seed=i) for i in range(n)] for n in SIZES]
INPUTS = [numbers(n, 2, seed=n + 5) for n in SIZES]
COLLATED = StackDataset(TensorDataset(numbers(8, 2), numbers(8, 1)), numbers(8, 1, seed=3))
CASES = {
    "packed": (OfPacked, list(zip(PACKED, TARGETS, strict=True))),
    "packed with another input": (
        OfPacked,
        [((packed, y), y) for packed, y in zip(PACKED, TARGETS, strict=True)],
    ),
    "list": (OfList, list(zip(LISTS, TARGETS, strict=True))),
    "collated pair": (OfTwo, DataLoader(COLLATED, batch_size=2)),
    "graph": (OfGraph, [Graph(x, y) for x, y in zip(INPUTS, TARGETS, strict=True)]),
    "no targets": (OfGraph, [(Graph(x, y), None) for x, y in zip(INPUTS, TARGETS, strict=True)]),
}


def run(model: type[nn.Module], batches) -> dict[str, list[float]]:
    handler = NNHandler(model, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(squares)
    window = 2 // handler.world.size
    history = handler.fit(
        batches, epochs=2, shuffle=None, progress_bar=False, gradient_accumulation_steps=window
    )
    weights = torch.cat([p.detach().flatten() for p in handler.module.parameters()])
    return {
        "weights": weights.tolist(),
        "loss": history.history["loss"],
        "val_loss": [handler.evaluate(batches)["loss"]],
        "predictions": handler.predict(batches).flatten().tolist(),
    }


def main(folder: Path) -> None:
    results = {name: run(*case) for name, case in CASES.items()}
    rank = NNHandler(nn.Linear(1, 1), "cpu").world
    name = f"rank{rank.rank}" if rank.size > 1 else "one"
    (folder / f"{name}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
