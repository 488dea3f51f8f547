"""Kill and resume a training run, and compare the result with an uninterrupted run.

The script trains twice: once uninterrupted, once killed several times with SIGKILL and resumed.
Both must end with the same bits: weights, optimizer, history, log file::

    python examples/resume_after_kill.py --kills 3
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fitkit import Accuracy, CSVLogger, ModelCheckpoint, NNHandler
from fitkit.testing import differences


class DigitNet(nn.Module):
    """Images of 8 x 8 pixels, ``(batch, 64)``, to logits of ten digits, ``(batch, 10)``."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self.layers(pixels)


def train(folder: Path, epochs: int) -> None:
    """An ordinary training script; ``resume=`` makes it resumable."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)  # more threads do not speed up a network this small
    pixels, digits = load_digits(return_X_y=True)
    handler = NNHandler(DigitNet, dropout=0.2, seed=0)  # with a class, the seed decides its weights
    handler.set_optimizer(torch.optim.Adam, lr=5e-4)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    handler.fit(
        (pixels / 16.0, digits),
        epochs=epochs,
        validation_split=0.2,
        callbacks=[
            CSVLogger(folder / "log.csv"),
            ModelCheckpoint(folder / "{epoch:03d}-{batch:03d}.pth", save_freq=7, max_to_keep=2),
            ModelCheckpoint(folder / "last.pth"),
        ],
        resume=folder,
        progress_bar=False,
    )


def main() -> None:
    """Run, kill, resume, compare, plot."""
    options = parse_options()
    if options.train is not None:
        train(options.train, options.epochs)
        return
    whole, killed = options.output / "undisturbed", options.output / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)

    start(whole, options.epochs).wait()
    kills = []
    for number in range(options.kills):
        rows = (number + 1) * options.epochs // (options.kills + 1)
        kills.append(kill_after(start(killed, options.epochs), killed / "log.csv", rows))
        print(f"killed in epoch {kills[-1] + 1}")
    if start(killed, options.epochs).wait() != 0:
        sys.exit("the resumed run failed")

    rows, rows_killed = read_log(whole), read_log(killed)
    draw(rows, rows_killed, kills, options.output / "curves.png")
    states = [torch.load(folder / "last.pth", weights_only=True) for folder in (whole, killed)]
    # a checkpoint also holds the arguments of the callbacks, here two different folders
    found = [path for path, _, _ in differences(*states) if "['config']" not in path]
    found += ["log.csv"] if rows != rows_killed else []
    print(f"reached a validation accuracy of {float(rows_killed[-1]['val_accuracy']):.3f}")
    print(f"wrote {options.output / 'curves.png'}")
    if found:
        sys.exit(f"the results differ, first in {found[0]}")
    print("both ended with the same bits: weights, optimizer, random streams, history and log")


def start(folder: Path, epochs: int) -> subprocess.Popen[bytes]:
    """Start the training in a new process, always with the same command."""
    script = [sys.executable, *("-W", "error"), __file__]
    return subprocess.Popen([*script, "--train", str(folder), "--epochs", str(epochs)])


def kill_after(process: subprocess.Popen[bytes], log: Path, rows: int) -> int:
    """Kill the process once its log has ``rows`` rows; returns the number of rows then."""
    while count_rows(log) < rows:
        if process.poll() is not None:
            sys.exit(f"the run ended with {process.returncode} before it could be killed")
        time.sleep(0.002)
    process.kill()
    process.wait()
    return count_rows(log)


def count_rows(log: Path) -> int:
    """The number of complete rows below the header."""
    return max(0, log.read_bytes().count(b"\n") - 1) if log.exists() else 0


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the log as strings."""
    with (folder / "log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def draw(
    rows: list[dict[str, str]], rows_killed: list[dict[str, str]], kills: list[int], path: Path
) -> None:
    """Plot the losses of both runs and the kills."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run, label, style in (
        (rows, "undisturbed", {"linewidth": 6, "alpha": 0.35}),
        (rows_killed, "killed and started again", {"linewidth": 1.5, "color": "black"}),
    ):
        axes.plot(
            [int(row["epoch"]) + 1 for row in run],
            [float(row["val_loss"]) for row in run],
            label=label,
            **style,
        )
    for number, kill in enumerate(kills):
        axes.axvline(
            kill + 0.5, color="red", linestyle=":", label="kill -9" if number == 0 else None
        )
    axes.set(xlabel="epoch", ylabel="validation loss", title="Bit for bit the same curve")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Kill a run and compare its end.")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of each run (30)")
    parser.add_argument("--kills", type=int, default=3, help="times to kill the second run (3)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/resume_after_kill"), help="folder to write to"
    )
    parser.add_argument(
        "--train", type=Path, help="only train, and write to this folder (used internally)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
