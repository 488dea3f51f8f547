"""Writes the golden checkpoints: files of the format as it is today, for later fitkits to read.

Beside each file stands what it holds, taken from the run and not from the file, and how the run
ended. Run it once for a version of the format; files that are there are not to be written again.

    python tests/scripts/make_golden.py tests/checkpointing/golden
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

import fitkit

# What depends on the machine, on how this script was started, or holds only inside the file.
NOT_TOLD = ("rng", "fitkit_version", "pytorch_version", "model_class", "writing")


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        # no bias before a normalization: its gradient is noise, which AdamW makes as large as any
        first = nn.Linear(3, width, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm1d(width), nn.Dropout(0.2))
        self.head = nn.Linear(width, 2)

    def forward(self, inputs):
        return self.head(torch.relu(self.body(inputs)))


class Seen(fitkit.Callback):
    """Progress in containers of several kinds."""

    state_fields = ("losses", "where", "total")

    def __init__(self):
        self.losses = []
        self.where = {"batches": (), "marks": {1}}
        self.total = torch.zeros(2, dtype=torch.float64)

    def on_train_batch_end(self, batch, logs):
        self.losses = [*self.losses, logs["loss"]]
        self.where = {"batches": (*self.where["batches"], batch), "marks": {1, batch}}
        self.total = self.total + batch


def data():
    """Sixteen samples that no random stream decides on."""
    inputs = torch.arange(48, dtype=torch.float32).reshape(16, 3).sin()
    return inputs, (inputs.sum(1) > 0).long()


def plain(folder):
    """A plain run of three epochs; its golden file is from the end of the second."""
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=11)
    handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    saver = fitkit.ModelCheckpoint(folder / "{epoch}.pth")
    return handler, {"epochs": 3, "callbacks": [saver]}


def rich(folder):
    """A run with much attached; its golden file is from inside an epoch and a window."""
    handler = fitkit.NNHandler(Net, width=4, seed=12)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, interval="step", T_max=9)
    handler.set_loss_fn(nn.CrossEntropyLoss(label_smoothing=0.1))
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.auto_save(1, folder / "auto", "{epoch:02d}", overwrite=True)
    keep = fitkit.Retention(keep_last=1, keep_best=1, monitor="val_loss", keep_every_n_epochs=2)
    callbacks = [
        fitkit.ModelCheckpoint(folder / "{global_step}.pth", save_freq=5),
        fitkit.ModelCheckpoint(folder / "kept" / "{epoch}.pth", retention=keep),
        fitkit.ModelCheckpoint(folder / "best.pth", "val_loss", save_best_only=True),
        fitkit.ModelCheckpoint(folder / "w{epoch}.pth", save_weights_only=True),
        fitkit.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
        fitkit.ReduceLROnPlateau("val_loss", patience=3),
        Seen(),
    ]
    return handler, {
        "epochs": 3,
        "callbacks": callbacks,
        "validation_data": data(),
        "gradient_accumulation_steps": 3,
        "ema_decay": 0.8,
    }


# name: (the run, the file in its folder)
GOLDEN = {"plain": (plain, "2.pth"), "rich": (rich, "5.pth"), "weights": (rich, "w2.pth")}


def fit(handler, options, **more):
    """Four batches an epoch."""
    return handler.fit(data(), batch_size=4, progress_bar=False, **options, **more)


def summarize_value(value):
    """A state as JSON tells it, exactly: tensors with type and shape, keys with their types."""
    if isinstance(value, torch.Tensor):
        numbers = [repr(number) for number in value.reshape(-1).tolist()]
        return {"tensor": [str(value.dtype), list(value.shape), numbers]}
    if isinstance(value, dict):
        return {
            repr(key): summarize_value(item) for key, item in value.items() if key not in NOT_TOLD
        }
    if isinstance(value, (list, tuple, set)):
        return {type(value).__name__: [summarize_value(item) for item in value]}
    return repr(value)


class Notes(fitkit.Callback):
    """What the run holds when a file is there."""

    order = 10_000

    def __init__(self, file):
        self.file = file
        self.found = None

    def on_checkpoint_saved(self, path, logs):
        if Path(path).name == self.file:
            weights = self.file.startswith("w")
            handler = self.handler
            self.found = summarize_value(
                handler.weights.evaluated() if weights else handler.get_state_dict()
            )


def make(name, folder):
    """Write one golden file, and beside it what it holds and how its run ended."""
    build, file = GOLDEN[name]
    with tempfile.TemporaryDirectory() as scratch:
        notes = Notes(file)
        handler, options = build(Path(scratch))
        options["callbacks"].append(notes)
        history = fit(handler, options)
        shutil.copy(Path(scratch, file), folder / f"{name}.pth")
    end = {key: value.tolist() for key, value in handler.module.state_dict().items()}
    run_result = {"holds": notes.found, "end": {"weights": end, "history": history.history}}
    (folder / f"{name}.json").write_text(json.dumps(run_result, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write; must exist")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for name in GOLDEN:
        make(name, folder)
        print(name, (folder / f"{name}.pth").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
