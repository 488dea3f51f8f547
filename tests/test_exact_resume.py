"""A run with everything attached, resumed at every boundary, ends as if nothing had happened."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fitkit
from fitkit.testing import assert_resumes_exactly


class Augmented(Dataset):
    """Draws from all three global generators for every sample."""

    def __init__(self, size=22):
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(size, 6, generator=generator)
        self.targets = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.inputs[index] + noise.float(), self.targets[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.4)
        self.last = nn.Linear(8, 2)

    def forward(self, inputs):
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


class Watcher(fitkit.Callback):
    """A user's own stateful callback, which also draws random numbers."""

    state_fields = ("seen", "drawn")

    def __init__(self):
        self.seen = []
        self.drawn = 0.0

    def on_train_batch_end(self, batch, logs):
        self.seen = [*self.seen, logs["loss"]]
        self.drawn += random.random() + torch.rand(()).item()

    def on_checkpoint_saved(self, path, logs):
        if not path.endswith(".boundary.pth"):
            self.seen = [*self.seen, path]


def make_handler(num_workers=0, precision_seed=11):
    handler = fitkit.NNHandler(Net, seed=precision_seed)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, interval="step", T_max=12)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_train_loader(Augmented(), batch_size=4, num_workers=num_workers)
    handler.set_val_loader(Augmented(10), batch_size=4)
    handler.auto_save(2, "auto", "model_epoch{epoch:02d}", overwrite=True)
    return handler


def make_callbacks():
    return [
        fitkit.ModelCheckpoint("batches/{global_step:03d}.pth", save_freq=3, max_to_keep=2),
        fitkit.ModelCheckpoint("best.pth", monitor="val_accuracy", save_best_only=True),
        fitkit.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        fitkit.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
        fitkit.CSVLogger("log.csv"),
        fitkit.JSONLinesLogger("log.jsonl"),
        fitkit.LearningRateMonitor(),
        Watcher(),
    ]


OPTIONS = {
    "epochs": 4,
    "gradient_accumulation_steps": 4,
    "precision": "fp16",
    "ema_decay": 0.8,
    "gradient_clipping_norm": 1.0,
}


def test_everything_attached_resumes_exactly_at_every_boundary():
    tried = assert_resumes_exactly(make_handler, make_callbacks=make_callbacks, **OPTIONS)
    events = {label.split(",")[0] for label in tried}
    assert events == {
        "on_epoch_begin",
        "on_train_batch_end",
        "on_test_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
    }
