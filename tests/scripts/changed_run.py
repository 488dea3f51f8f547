"""A training script that is changed between two starts; each start is a process of its own.

Run as a program it is the server of ``Starter``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fitkit

SCORES = [5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 2.0, 1.0, 0.5, 0.4]  # best after 3 epochs, again after 7


class Scores(fitkit.Callback):
    """Logs values that are written down: ``score`` has to fall, ``gain`` rises all the time."""

    def on_epoch_end(self, epoch, logs):
        self.log("score", SCORES[epoch])
        self.log("gain", float(epoch))


class Dies(fitkit.Callback):
    """Kills its process after a number of training batches, before anything is saved for them."""

    order = -1

    def __init__(self, step):
        self.step = step

    def on_train_batch_begin(self, batch, logs):
        if self.handler.state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Count(fitkit.Callback):
    """A user's callback with state."""

    state_fields = ("batches",)

    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, batch, logs):
        self.batches += 1


def train(
    *,
    kill_at=None,
    seed=0,
    width=3,
    optimizer="SGD",
    lr=0.1,
    schedule=None,
    loss=None,
    samples=24,
    batch_size=4,
    epochs=4,
    patience=9,
    monitor="score",
    saver="run/{epoch}.pth",
    save_freq="epoch",
    callbacks=("stop", "count"),
    metric=False,
    resume="run",
    **options,
):
    """The script; four epochs of six batches, a checkpoint after each."""
    handler = fitkit.NNHandler(nn.Linear, "cpu", seed=seed, in_features=width, out_features=1)
    handler.set_optimizer(getattr(torch.optim, optimizer), lr=lr)
    if schedule is not None:
        name, arguments = schedule
        handler.set_scheduler(getattr(torch.optim.lr_scheduler, name), **arguments)
    handler.set_loss_fn(getattr(nn, loss or "MSELoss")())
    if metric:
        handler.add_metric("mae", fitkit.MeanAbsoluteError())
    stop = fitkit.EarlyStopping(monitor, patience=patience, mode="min")
    count = Count()
    kinds = {"stop": stop, "count": count, "timer": fitkit.Timer(3600)}
    attached = [kinds[name] for name in callbacks]
    keeper = fitkit.ModelCheckpoint(saver, save_freq=save_freq)
    if kill_at is not None:
        attached.append(Dies(kill_at))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, width, generator=generator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = handler.fit(
            (inputs, inputs.sum(1, keepdim=True)),
            epochs=epochs,
            batch_size=batch_size,
            callbacks=[Scores(), *attached, keeper],
            progress_bar=False,
            resume=resume,
            **options,
        )
    return {
        "epochs": history.epoch,
        "history": history.history,
        "lr": handler.optimizer.param_groups[0]["lr"],
        "steps": handler.state.global_step,
        "stopped": handler.state.stop_reason,
        "best": stop.best,
        "wait": stop.wait,
        "count": count.batches,
        "files": keeper.lasting,
        "weight": handler.module.weight.detach().flatten().tolist(),
        "averaged": handler.ema is not None,
        "warnings": [str(one.message) for one in caught],
    }


@dataclass
class Start:
    """What a start printed and returned."""

    code: int
    stderr: str
    result: dict[str, Any]

    @property
    def said(self) -> str:
        """Everything that the user could read."""
        return "\n".join([self.stderr, *self.result.get("warnings", ())])


class Starter:
    """Starts the script, each time in a process of its own.

    They are forked from a server that has imported torch and trained nothing: autograd cannot be
    forked, and to import torch for each start would take most of the time.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server: Any = subprocess.Popen(command, text=True, **pipes)

    def start(self, folder: Path, **changes: Any) -> Start:
        """Run the script in ``folder`` to its end, or until it kills itself."""
        folder.mkdir(exist_ok=True)
        self._server.stdin.write(json.dumps([str(folder), changes]) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        result = folder / "result.json"
        return Start(
            code,
            (folder / "stderr.txt").read_text(),
            json.loads(result.read_text()) if result.exists() else {},
        )

    def close(self) -> None:
        self._server.communicate()


def launch(folder: str, changes: dict[str, Any]) -> int:
    """Start the script in ``folder``; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        output = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  as in a new process
        Path("result.json").unlink(missing_ok=True)
        torch.set_num_threads(1)
        torch.manual_seed(os.getpid())
        result = train(**changes)
        sys.stderr.flush()
        Path("result.json").write_text(json.dumps(result))
        os._exit(0)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException:  # noqa: BLE001  a forked child must not return into its parent's code
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    # torch imports much at the first use of an optimizer; here once for all starts
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).step()
    for line in sys.stdin:
        pid = launch(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
