"""Metrics of one process and of many: what ``tests/distributed/test_metrics.py`` starts.

    torchrun --standalone --nproc-per-node=2 tests/scripts/metrics_run.py OUT

Every rank leaves ``OUT/rank<r>.json``: the history of a fit and the values of two evaluations.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from fitkit import ConfigurationError, EpochMetric, NNHandler, StepOutput


class Plain:
    """Nothing says how several of them are merged."""

    def __init__(self) -> None:
        self.total = 0.0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add the outputs."""
        self.total += float(outputs.sum())

    def compute(self) -> float:
        """The sum."""
        return self.total

    def reset(self) -> None:
        """Begin anew."""
        self.total = 0.0


def step(handler: NNHandler, batch: Any) -> StepOutput:
    """Logs another value for each kind of batch."""
    x, y = batch
    outputs = handler.model(x)
    loss = nn.functional.cross_entropy(outputs, y)
    return StepOutput(loss, outputs.softmax(1), y, logs={f"first_{int(y[0])}": x.mean()})


def skipping_step(handler: NNHandler, batch: Any) -> StepOutput | None:
    """Skips a kind of batch."""
    return None if int(batch[1][0]) == 1 else step(handler, batch)


def in_order(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
    """Depends on the order of the samples."""
    places = torch.arange(len(targets), dtype=outputs.dtype)
    return {"outputs": outputs[:, 0] @ places, "last": targets[-3:], "number": len(targets)}


def make_handler() -> NNHandler:
    """A handler with metrics of all kinds."""
    torch.manual_seed(0)
    handler = NNHandler(nn.Linear(2, 3).double(), device="cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.0)
    handler.set_train_step(step)
    handler.add_metric("sums", MulticlassAccuracy(3, average=None))
    handler.add_metric("lists", MetricCollection({"area": MulticlassAUROC(3)}))
    handler.add_metric("order", EpochMetric(in_order))
    handler.add_metric("function", lambda outputs, targets: outputs.mean(0))
    return handler


def main(out: Path) -> None:
    """Fit and evaluate batches, of which the second rank gets one less."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    y = torch.arange(20) % 3
    batches = list(zip(x.split(4), y.split(4), strict=True))
    handler = make_handler()
    trained = handler.fit(batches, epochs=2, validation_data=batches[:1], progress_bar=False)
    found = {
        "fit": trained.history,
        "one batch": handler.evaluate(batches[1:2]),
        "arrays": handler.evaluate((x, y), batch_size=7),
    }
    handler.set_train_step(skipping_step)
    found["skipped"] = handler.evaluate(batches)
    handler.add_metric("plain", Plain())
    try:
        handler.evaluate(batches)
    except ConfigurationError as error:
        found["refused"] = str(error)
    found["predicted"] = handler.predict(x, batch_size=7).sum().item()  # needs no metric
    rank = os.environ.get("RANK", "0")
    (out / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
