"""One script for one process and for many: what the distributed tests start.

    python tests/scripts/shared_run.py OUT
    torchrun --standalone --nproc-per-node=2 tests/scripts/shared_run.py OUT

Every process leaves ``OUT/rank<r>.pth`` with what it knows at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fitkit
from fitkit import EarlyStopping, ModelCheckpoint, NNHandler


class Samples(Dataset):
    """Samples that are made when asked for, with augmentation."""

    def __init__(self, count: int, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 6, generator=generator, dtype=torch.float64).to(dtype)
        self.y = (self.x[:, :2].sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = random.random() + float(torch.rand(()))
        return self.x[index] + 0.01 * noise, self.y[index]


class Records(fitkit.Callback):
    """Who saw which samples, and what callbacks were told."""

    order = 500

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_epoch_end(self, epoch: int, logs: fitkit.Logs) -> None:
        """Keep the logs."""
        self.logs.append(dict(logs))
        self.steps.append(self.handler.state.global_step)


class Strikes(fitkit.Callback):
    """Something happens to one rank at one step."""

    def __init__(self, what: str, rank: int, step: int, out: Path) -> None:
        self.what, self.rank, self.step, self.out = what, rank, step, out

    def on_train_batch_end(self, batch: int, logs: fitkit.Logs) -> None:
        """Strike, once in the life of the folder."""
        state, mark = self.handler.state, self.out / "struck"
        if state.global_step < self.step or self.handler.world.rank != self.rank or mark.exists():
            return
        mark.write_text(repr(time.time()))
        if self.what == "raise":
            raise ValueError("boom on purpose")
        if self.what == "stop":
            state.stop("enough on purpose")
        if self.what in ("SIGKILL", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, self.what))


def data_of(options: argparse.Namespace, count: int, seed: int, *, shuffle: bool) -> object:
    """The data in the form that is asked for."""
    dtype = getattr(torch, options.dtype)
    samples = Samples(count, dtype, seed)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if options.data == "arrays":
        return TensorDataset(samples.x, samples.y)
    if options.data == "dataset":
        return samples
    if options.data == "loader":
        size = options.batch // ranks
        return DataLoader(samples, batch_size=size, shuffle=shuffle, num_workers=options.workers)
    size = options.batch // ranks
    return [(samples.x[i : i + size], samples.y[i : i + size]) for i in range(0, count, size)]


def make_handler(options: argparse.Namespace) -> NNHandler:
    """A small classifier."""
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(options.seed)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)]
    if options.dropout:
        layers.insert(2, nn.Dropout(0.3))
    handler = NNHandler(nn.Sequential(*layers).to(dtype), device="cpu", seed=options.seed)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=40, interval="step")
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.add_metric("mean_output", lambda outputs, targets: outputs.mean())
    return handler


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=53)
    parser.add_argument("--val", type=int, default=21)
    parser.add_argument("--batch", type=int, default=8, help="over all processes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--data", default="arrays")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--ema", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--save-freq", type=int)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--strike", nargs=3, help="what, rank, step")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per batch")
    parser.add_argument("--strategy", default="auto")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, predict, and write down what came of it."""
    options = parsed()
    torch.set_num_threads(1)
    handler = make_handler(options)
    rank, out = handler.world.rank, options.out
    train, val = (
        data_of(options, options.train, 0, shuffle=True),
        data_of(options, options.val, 1, shuffle=False),
    )
    sizes = {} if options.data in ("loader", "batches") else {"global_batch_size": options.batch}
    handler.set_train_loader(train, **sizes)
    handler.set_val_loader(val, **sizes)
    records = Records()
    callbacks: list[fitkit.Callback] = [records, EarlyStopping(patience=50)]
    callbacks.append(fitkit.CSVLogger(out / "log.csv"))
    if options.save_freq:
        callbacks.append(
            ModelCheckpoint(
                out / "runs" / "last.pth",
                save_freq=options.save_freq,
                background=options.background,
            )
        )
    callbacks.append(ModelCheckpoint(out / "runs" / "best.pth", save_best_only=True))
    if options.delay:
        callbacks.append(
            fitkit.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(options.delay))
        )
    if options.strike:
        what, who, step = options.strike
        callbacks.append(Strikes(what, int(who), int(step), out))
    history = handler.fit(
        epochs=options.epochs,
        callbacks=callbacks,
        gradient_accumulation_steps=options.accumulation,
        ema_decay=options.ema,
        resume=out / "runs" if options.resume else None,
        progress_bar=False,
    )
    samples = Samples(options.val, getattr(torch, options.dtype), 1)
    found = {
        "history": history.history,
        "logs": records.logs,
        "weights": dict(handler.module.state_dict()),
        "averaged": None if handler.ema is None else dict(handler.ema.weights()),
        "evaluation": handler.evaluate(),
        "predictions": handler.predict(TensorDataset(samples.x), batch_size=4),
        "step": handler.state.global_step,
        "samples": handler.state.samples_seen,
        "stop_reason": handler.state.stop_reason,
        "interrupted": history.interrupted,
    }
    torch.save(found, out / f"rank{rank}.pth")


if __name__ == "__main__":
    main()
