"""A training with every tracker that kills itself, and is started again.

Each start is a new process, forked from one that has imported everything and started nothing.

    python tests/scripts/tracked_run.py 7,all 14 0

trains until step 7, where it kills itself and its children; goes on until 14, where it kills only
itself; and goes on to the end. Printed are the exit status of each, and the run in each tracker.
"""

import os
import signal
import sys
import traceback
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
        print(logger.run_id, flush=True)


def start(step, kill_children):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        main(step, kill_children)
        os._exit(0)
    except BaseException:  # noqa: BLE001  a forked child must not return into its parent's code
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    fitkit.TensorBoardLogger(), fitkit.MLflowLogger(), fitkit.WandbLogger()  # imports all there is
    for argument in sys.argv[1:]:
        step, _, whom = argument.partition(",")
        print(start(int(step), whom == "all"), flush=True)
