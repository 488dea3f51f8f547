"""Trains on batches with weights, some of which are 0 or skipped, on one process or on two.

``python weighted_run.py FOLDER``, or by torchrun: writes what each rank has to ``FOLDER``. Two
processes take a batch each; one process takes both in one batch, so that the results are the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitkit import Callback, NNHandler, StepOutput

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(8, 3, 4, generator=GENERATOR, dtype=torch.float64)  # (samples, time, features)
Y = torch.randint(5, (8, 3), generator=GENERATOR)
LENGTHS = torch.tensor([3, 1, 2, 2, 0, 0, 1, 3])
PADDED = Y.masked_fill(torch.arange(3) >= LENGTHS[:, None], -100)
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 7.0, 0.5], dtype=torch.float64)
VALUES = torch.randn(8, 3, 5, generator=GENERATOR, dtype=torch.float64)
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Class scores of shape (samples, classes, time); ``has_buffer``: DDP copies it."""

    def __init__(self, *, has_buffer: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5, dtype=torch.float64)
        self.unused_blocks = nn.ModuleList([nn.Linear(5, 5, dtype=torch.float64)])
        if has_buffer:
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        scores = self.unused_blocks[0](self.layer(x)).mT
        return scores * self.scale if hasattr(self, "scale") else scores


def pairs(targets: Tensor) -> list[Batch]:
    """Four batches of two samples."""
    return [(X[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)]


def merged(batches: list[Batch]) -> list[Batch]:
    """Two batches of a round as one, as a single process has them."""
    rounds = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    return [(torch.cat([x for x, _ in r]), torch.cat([y for _, y in r])) for r in rounds]


def token_loss(handler: Any, batch: Batch) -> StepOutput:
    """A step that weights its loss by tokens itself; NaN without any."""
    x, y = batch
    return StepOutput(functional.cross_entropy(handler.model(x), y), weight=(y != -100).sum())


def skips_before(handler: Any, batch: Batch) -> StepOutput | None:
    """Skips a batch of padding before it calls the model."""
    return None if (batch[1] == -100).all() else token_loss(handler, batch)


def skips_after(handler: Any, batch: Batch) -> StepOutput | None:
    """Skips a batch of padding after it has called the model."""
    output = token_loss(handler, batch)
    return None if output.loss.isnan() else output


# (loss or step, targets, window, options); batch 3 of 4 has padding only
CASES: dict[str, tuple[Any, Tensor, int, dict[str, Any]]] = {
    "tokens": (nn.CrossEntropyLoss(), PADDED, 1, {}),
    "tokens in windows": (nn.CrossEntropyLoss(), PADDED, 2, {}),
    "class weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), PADDED, 2, {}),
    "elements": (nn.MSELoss(), VALUES.mT, 1, {}),
    "step weight": (token_loss, PADDED, 2, {}),
    "skipped before the model": (skips_before, PADDED, 1, {}),
    "skipped after the model": (skips_after, PADDED, 1, {}),
    "skipped everywhere": (skips_before, PADDED.index_fill(0, torch.arange(4, 8), -100), 1, {}),
    "padding on one rank": (token_loss, PADDED, 1, {}),
    "padding everywhere": (
        nn.CrossEntropyLoss(),
        PADDED.index_fill(0, torch.arange(4, 8), -100),
        1,
        {},
    ),
    "skipped in windows": (skips_before, PADDED, 2, {}),
    "batch norm skipped": (skips_before, PADDED, 1, {"has_buffer": True}),
    "fsdp weight of zero": (token_loss, PADDED, 1, {"strategy": "fsdp"}),
}


class SaveAfterEachBatch(Callback):
    """Saves, in the middle of epochs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        """Save."""
        self.handler.save(self.folder / f"{self.handler.state.global_step}.pth")


def trained(name: str, *, is_alone: bool, **how: Any) -> tuple[NNHandler, dict[str, list[float]]]:
    """Train on one case; ``how``: more arguments of ``fit``."""
    loss, targets, window, options = CASES[name]
    options = dict(options)
    strategy = "auto" if is_alone else options.pop("strategy", "auto")
    options.pop("strategy", None)
    torch.manual_seed(0)
    handler = NNHandler(Net(**options), "cpu", seed=0, strategy=strategy)
    handler.set_optimizer(torch.optim.SGD, lr=0.5, momentum=0.5)
    if isinstance(loss, nn.Module):
        handler.set_loss_fn(loss)
    else:
        handler.set_train_step(loss)
    batches = merged(pairs(targets)) if is_alone else pairs(targets)
    history = handler.fit(
        batches,
        validation_data=pairs(targets),
        epochs=2,
        gradient_accumulation_steps=window,
        progress_bar=False,
        **how,
    ).history
    return handler, history


def weights_of(handler: NNHandler) -> Tensor:
    """All weights in one tensor."""
    whole = handler.get_state_dict()["model_state_dict"].values()
    return torch.cat([getattr(w, "full_tensor", lambda w=w: w)().flatten() for w in whole])


def run(name: str, folder: Path, *, is_alone: bool) -> dict[str, Any]:
    """Train on one case, and again from each of its checkpoints."""
    handler, history = trained(name, is_alone=is_alone, callbacks=[SaveAfterEachBatch(folder)])
    weights = weights_of(handler)
    differing = []
    for step in range(1, handler.state.global_step + 1):
        resumed, _ = trained(name, is_alone=is_alone, resume=folder / f"{step}.pth")
        if not torch.equal(weights_of(resumed), weights):
            differing.append(step)
    skips = "skip" in name
    return {
        "weights": weights.tolist(),
        "loss": [*history["loss"], *history["val_loss"]],
        "counts": [handler.state.optimizer_steps, 0 if skips else handler.state.samples_seen],
        "differ after a resume": differing,
    }


def main() -> None:
    """Run all cases, and write their results."""
    world = NNHandler(nn.Linear(1, 1), "cpu").world
    out, num_ranks = Path(sys.argv[1]), world.size
    results = {
        name: run(name, out / f"{name}, {num_ranks}", is_alone=num_ranks == 1) for name in CASES
    }
    rank = "one" if num_ranks == 1 else f"rank{world.rank}"
    (out / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
