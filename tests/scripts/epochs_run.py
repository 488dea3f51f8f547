"""A run with everything attached, for test_resume_epochs.py, which also runs it elsewhere."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import fitkit

EPOCHS = 5


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(width, 2)

    def forward(self, inputs):
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


class Samples(Dataset):
    def __init__(self, size):
        generator = torch.Generator().manual_seed(size)
        self.inputs = torch.randn(size, 4, generator=generator)
        self.targets = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(4) + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.inputs[index] + noise.float(), self.targets[index]


def make_handler(weights=5):
    """``weights``: the seed of the initial weights, which a resume replaces."""
    handler = fitkit.NNHandler(Net, width=8, seed=5)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(weights)
        for parameter in handler.module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    handler.set_optimizer(torch.optim.AdamW, lr=0.03)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, interval="step", step_size=4, gamma=0.9)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_train_loader(Samples(22), batch_size=4)
    handler.set_val_loader(Samples(9), batch_size=4)
    return handler


def make_callbacks(folder: Path):
    return [
        fitkit.ModelCheckpoint(folder / "epoch_{epoch}.pth"),
        fitkit.ModelCheckpoint(folder / "last.pth"),
        fitkit.ModelCheckpoint(folder / "best.pth", "val_loss", True, save_weights_only=True),
        fitkit.ModelCheckpoint(folder / "top_{epoch}.pth", "val_accuracy", max_to_keep=2),
        fitkit.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
        fitkit.ReduceLROnPlateau("val_loss", patience=0, factor=0.7),
        fitkit.LearningRateScheduler(lambda epoch, lr: 0.99 * lr),
        fitkit.GradientAccumulationScheduler({0: 2, 3: 3}),
        fitkit.LearningRateMonitor(),
        fitkit.ThroughputMonitor(),
        fitkit.TerminateOnNaN(),
        fitkit.Timer(3600),
        fitkit.EMA(0.8),
        fitkit.CSVLogger(folder / "log.csv"),
        fitkit.JSONLinesLogger(folder / "log.jsonl"),
        fitkit.ConsoleLogger(),
        fitkit.HTMLReport(folder / "report.html"),
        fitkit.Profiler(folder / "trace.json"),
        fitkit.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    ]


def train(folder: Path, resume=None, more=(), weights=5, epochs=EPOCHS):
    handler = make_handler(weights)
    handler.auto_save(2, folder / "auto", "model_{epoch}", overwrite=True)
    handler.fit(
        epochs=epochs,
        callbacks=[*make_callbacks(folder), *more],
        precision="fp16",
        gradient_clipping_norm=1.0,
        resume=resume,
    )
    return handler


def main(boundaries: Path) -> None:
    """Resume a copy of the run as it was at each boundary, in this process, seeded differently."""
    for seed, boundary in enumerate(sorted(boundaries.iterdir())):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        folder = boundaries.with_name("resumed") / boundary.name
        shutil.copytree(boundary, folder)
        resume = (True, folder, folder / "last.pth")[seed % 3]
        train(folder, resume, weights=5 + seed).save(boundaries.with_name("ends") / boundary.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
