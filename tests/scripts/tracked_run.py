"""A run with every tracker, for test_trackers_killed.py: it kills itself behind a given step.

python tests/scripts/tracked_run.py STEP [all]    STEP 0: to the end; all: with its children
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

import fitkit


class Kill(fitkit.Callback):
    order = 1000

    def __init__(self, step, children):
        self.step = step
        self.children = children

    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == self.step:
            for pid in children() if self.children else ():
                os.kill(pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def children():
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        if int(fields[1]) == os.getpid():
            yield int(stat.parent.name)


def main(step, kill_children):
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=1, seed=3)
    handler.set_optimizer(torch.optim.AdamW, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    inputs = torch.arange(60, dtype=torch.float32).reshape(20, 3) / 60
    store = f"sqlite:///{Path.cwd()}/mlflow.db"
    loggers = [
        fitkit.TensorBoardLogger("tb", every_n_batches=1, refresh_seconds=0),
        fitkit.MLflowLogger("fitkit", None, store, every_n_batches=1, refresh_seconds=0),
        fitkit.WandbLogger("fitkit", mode="offline", dir=".", every_n_batches=1, refresh_seconds=0),
    ]
    handler.fit(
        (inputs, inputs.sum(1, keepdim=True)),
        batch_size=2,
        epochs=2,
        progress_bar=False,
        callbacks=[
            *loggers,
            fitkit.ModelCheckpoint("run/last.pth", save_freq=4),
            fitkit.JSONLinesLogger("log.jsonl"),
            Kill(step, kill_children),
        ],
        resume="run",
    )
    for logger in loggers:
        sys.stdout.write(f"{logger.run_id}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] == ["all"])
