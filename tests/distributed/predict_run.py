"""Predictions of two ranks, each written to a file; ``test_predictions.py`` starts it."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fitkit import NNHandler, PredictionWriter

X = torch.arange(14.0).reshape(7, 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.out = nn.Linear(2, 1)

    def forward(self, x):
        return self.out(self.norm(x))


def objects(handler, batch):
    rows = [{"rows": v.repeat(int(v[0]), 1), "text": f"{int(v[0])}"} for v in batch]
    return {"objects": rows, "half": batch.half()}


def main(out: Path) -> None:
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.01)
    handler.set_loss_fn(nn.MSELoss())
    # each rank has its own samples, and so its own running statistics and their averages
    train = torch.cat([X, X[:1]])
    handler.fit((train, train[:, :1]), batch_size=2, epochs=3, ema_decay=0.5, progress_bar=False)
    rank = handler.world.rank
    writer = PredictionWriter(out / "files")
    found = {
        "joined": handler.predict(X, batch_size=2),
        "returned": handler.predict(X, batch_size=2, callbacks=[writer], return_outputs=False),
        "batches": list(handler.predict_batches(X, batch_size=2)),
        "of_three": handler.predict(X[:3], batch_size=1),
        "of_lists": handler.predict(list(X.split(3))),
        "few": list(handler.predict_batches(X[:1], batch_size=2)),
    }
    # a rank may stop early: the next collective is that of evaluate, on both
    found["early"] = list(islice(handler.predict_batches(X, batch_size=2), 1 if rank else None))
    found["evaluation"] = handler.evaluate((X, X[:, :1]))
    handler.set_predict_step(objects)
    found["objects"] = handler.predict(X, batch_size=2)
    torch.save(found, out / f"rank{rank}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
