"""Kills a training script at random instants until it ends, again and again, and compares each end.

The script calls ``fit`` twice: the second call has another optimizer, schedule, metric and data.
Half of the kills come from outside after a random time, the other half strike on a random line
of fitkit's own code, so that every line of a save, a resume or a hook has its turn. Each start is
a new process (forked from one that has imported torch and done nothing else), seeded differently,
and the script is changed in what must not change the result: the order of the callbacks, patience
that is not used up, what is logged, workers, and a callback that only listens.

    python tests/scripts/kill_harness.py --kills 100 --seed 0
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import fitkit
from fitkit.checkpointing.storage import safe_load
from fitkit.testing import differences

SOURCES = str(Path(fitkit.__file__).parent)


class Augmented(Dataset):
    def __init__(self, size):
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
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 2)
        )

    def forward(self, inputs):
        return self.layers(inputs)


class Watcher(fitkit.Callback):
    state_fields = ("seen",)

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, batch, logs):
        self.seen = [*self.seen, logs["loss"] + random.random()]

    def on_checkpoint_saved(self, path, logs):
        self.seen = [*self.seen, path]


def script(num_workers, edits):
    """The user's script; ``edits`` draws how it was changed before this start."""
    num_workers = edits.choice([0, num_workers])
    handler = fitkit.NNHandler(Net, seed=7)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, interval="step", T_max=12)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_train_loader(Augmented(22), batch_size=4, num_workers=num_workers)
    handler.set_val_loader(Augmented(10), batch_size=4)
    handler.auto_save(1, "run", "auto_{epoch:02d}", overwrite=True)
    callbacks = [
        fitkit.ModelCheckpoint(
            "run/batch_{global_step:03d}.pth",
            save_freq=1,
            max_to_keep=2,
            verbose=edits.choice([0, 1]),
        ),
        fitkit.ModelCheckpoint("run/best.pth", monitor="val_accuracy", save_best_only=True),
        fitkit.ModelCheckpoint(
            "run/weights.pth", monitor="val_loss", save_best_only=True, save_weights_only=True
        ),
        fitkit.EarlyStopping(
            "val_loss", patience=edits.choice([20, 30]), restore_best_weights=True
        ),
        fitkit.ReduceLROnPlateau("val_loss", patience=0, factor=0.5),
        fitkit.CSVLogger("log.csv"),
        fitkit.JSONLinesLogger("log.jsonl"),
        Watcher(),
        *edits.choice([[], [fitkit.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]]),
    ]
    edits.shuffle(callbacks)
    options = {"precision": "fp16", "ema_decay": 0.8, "progress_bar": False, "resume": "run"}
    handler.fit(epochs=3, callbacks=callbacks, gradient_accumulation_steps=4, **options)

    handler.set_optimizer(torch.optim.SGD, lr=0.01, momentum=0.9, params=decayed)
    handler.set_scheduler(
        torch.optim.lr_scheduler.OneCycleLR, interval="step", max_lr=0.1, total_steps=8
    )
    handler.add_metric("entropy", lambda outputs, targets: outputs.softmax(1).max(1)[0].mean())
    handler.set_train_loader(Augmented(16), batch_size=4, num_workers=num_workers)
    callbacks = [
        fitkit.ModelCheckpoint("run/tuned_{global_step:03d}.pth", save_freq=1, max_to_keep=1),
        fitkit.ModelCheckpoint("run/tuned.pth", monitor="val_entropy", mode="max", max_to_keep=1),
        fitkit.CSVLogger("tuned.csv"),
        Watcher(),
    ]
    edits.shuffle(callbacks)
    handler.fit(epochs=2, callbacks=callbacks, **options)
    handler.save("final.pth")


def decayed(model):
    """Parameter groups: weights with decay, and all others."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": weights, "weight_decay": 0.01}, {"params": others}]


def start(folder, num_workers, kill_line=None, count_into=None):
    """Run the script in a new process; returns its process id.

    ``kill_line``: the executed line of fitkit on which it kills itself. ``count_into``: the file
    into which it writes how many lines it executed.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        warnings.simplefilter("error")
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(os.getpid())
        killer = _Killer(kill_line or sys.maxsize)
        if kill_line or count_into:
            sys.settrace(killer.trace)
        script(num_workers, random.Random(os.getpid()))
        sys.settrace(None)
        if count_into:
            Path(count_into).write_text(str(sys.maxsize - killer.left))
        os._exit(0)
    except BaseException:  # noqa: BLE001  a forked child must not return into its parent's code
        sys.settrace(None)
        import traceback

        traceback.print_exc()
    os._exit(1)


class _Killer:
    """Kills its own process on the n-th executed line of fitkit."""

    def __init__(self, line):
        self.left = line

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        return self.local

    def local(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.local


def contents(folder):
    """What is on disk: checkpoints by what they hold, other files by their bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = state_in(path) if path.suffix == ".pth" else path.read_bytes()
    return found


def state_in(path):
    """The content of a checkpoint without what the edits change: configuration and order."""
    state = safe_load.read(path)
    if "callback_states" in state:
        entries = state["callback_states"].values()
        states = {f"{entry['name']} {entry['identity']}": entry["state"] for entry in entries}
        state = {**state, "callback_states": states, "config": None}
    return state


def finish(folder, num_workers, count_into=None):
    """Run to the end without a kill; returns the seconds it took."""
    began = time.monotonic()
    _, status = os.waitpid(start(folder, num_workers, count_into=count_into), 0)
    if status:
        raise SystemExit(f"the script failed with status {status}")
    return time.monotonic() - began


def kill_until_it_ends(folder, num_workers, seconds, lines, rng):
    """Start and kill until a start survives; returns the number of kills."""
    kills = 0
    while True:
        by_line = rng.random() < 0.5
        pid = start(folder, num_workers, rng.randrange(1, lines) if by_line else None)
        if not by_line:
            time.sleep(rng.uniform(0.0, 1.2 * seconds))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit("the script failed after a kill; see the traceback above")
            return kills
        kills += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills at least (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default: 0)")
    parser.add_argument("--workers", type=int, default=0, help="loader workers (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # torch imports much at the first use of an optimizer; here once for all starts
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        seconds = finish(whole, options.workers)
        expected = contents(whole)
        counted = Path(scratch, "counted")
        counted.mkdir()
        finish(counted, options.workers, count_into=Path(scratch, "lines"))
        lines = int(Path(scratch, "lines").read_text())
        kills = endings = 0
        while kills < options.kills:
            folder = Path(scratch, f"killed-{endings}")
            folder.mkdir()
            kills += kill_until_it_ends(folder, options.workers, seconds, lines, rng)
            endings += 1
            for path, wanted, found in differences(expected, contents(folder)):
                raise SystemExit(
                    f"after {kills} kills, ending {endings}: {path} is {found!r}, "
                    f"uninterrupted {wanted!r}"
                )
            shutil.rmtree(folder)
    print(f"{kills} kills, {endings} endings, all exact ({lines} lines to strike on)")


if __name__ == "__main__":
    main()
