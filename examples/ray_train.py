"""Ray Train starts the ranks: a worker is killed, Ray starts the run again, and it goes on.

    python -m pip install -e ".[ray]"
    python examples/ray_train.py

Ray creates torch's process group, which fitkit finds; nothing else differs from a script for one
process. ``resume=`` continues the run in the attempt that follows a failure, at the same sample.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn
from torch.utils.data import TensorDataset

from fitkit import Callback, Logs, ModelCheckpoint, NNHandler

X = torch.linspace(-1, 1, 512).reshape(128, 4)
DATA = TensorDataset(X, X.sum(1, keepdim=True))


class Killed(Callback):
    """The machine of one worker is lost, once."""

    def __init__(self, step: int, mark: Path) -> None:
        self.step, self.mark = step, mark

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Die in the middle of an epoch."""
        is_due = self.handler.state.global_step == self.step and not self.mark.exists()
        if is_due and self.handler.world.rank == 1:
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(config: dict[str, Any]) -> None:
    """What each worker runs."""
    torch.set_num_threads(1)
    folder = Path(config["folder"])
    with (folder / "attempts.txt").open("a") as attempts:
        attempts.write("one\n")
    handler = NNHandler(nn.Linear, "cpu", in_features=4, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader(DATA, global_batch_size=16)
    callbacks: list[Callback] = [ModelCheckpoint(folder / "run" / "last.pth", save_freq=1)]
    if config["kill_at"]:
        callbacks.append(Killed(config["kill_at"], folder / "killed"))
    history = handler.fit(epochs=4, callbacks=callbacks, resume=folder / "run", progress_bar=False)
    if handler.world.is_main:
        ranks, step, loss = handler.world.size, handler.state.global_step, history.train_losses[-1]
        (folder / "result.txt").write_text(f"{ranks} ranks, {step} steps, loss {loss!r}")


def main() -> None:
    """Two workers, of which one is killed after eleven batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="of checkpoints and results; default: a new one"
    )
    parser.add_argument(
        "--kill-at", type=int, default=11, help="batch after which a worker dies; 0: none does"
    )
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp()) / "ray").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(folder), "kill_at": options.kill_at},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(folder), failure_config=FailureConfig(max_failures=2)
        ),
    )
    trainer.fit()
    attempts = len((folder / "attempts.txt").read_text().split()) // 2
    print(f"{attempts} attempts, {(folder / 'result.txt').read_text()}")


if __name__ == "__main__":
    main()
