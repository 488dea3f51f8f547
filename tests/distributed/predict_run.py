"""Predictions of two ranks, each written to a file; ``test_predictions.py`` starts it."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

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


class Tagger(nn.Module):
    """Its loss is the mean over the labels that are not ignored."""

    loss_type = "ForTokenClassification"
    config = SimpleNamespace(num_labels=3)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 3)

    def forward(self, ids, labels=None):
        logits = self.embed(ids)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


IDS = torch.arange(24).reshape(6, 4) % 9
LABELS = IDS % 3
LABELS[:3, 2:] = -100
LABELS[5] = -100  # the whole share of a rank


def train_tagger():
    """The loss of the model before training, and its weights after one step."""
    handler = NNHandler(Tagger, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.5)
    data = {"ids": IDS, "labels": LABELS}
    loss = handler.evaluate(data, batch_size=2)["loss"]
    options = {"shuffle": False, "progress_bar": False, "gradient_accumulation_steps": 9}
    history = handler.fit(data, batch_size=1, **options)
    return loss, history.history["loss"], handler.module.embed.weight.detach()


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
    found["tagger"] = train_tagger()
    handler.set_predict_step(objects)
    found["objects"] = handler.predict(X, batch_size=2)
    torch.save(found, out / f"rank{rank}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
