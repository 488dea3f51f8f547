"""Train with one rank and with two, and compare the results.

The script starts itself: once as a single process, once through torchrun. With the same global
batch size both follow the same trajectory up to rounding. No accelerator is needed::

    python examples/two_processes.py

You can also run the second command yourself::

    torchrun --standalone --nproc-per-node=2 examples/two_processes.py --train runs/here
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from fitkit import Accuracy, CSVLogger, NNHandler


class DigitNet(nn.Module):
    """Images of 8 x 8 pixels, ``(batch, 64)``, to logits of ten digits, ``(batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """The logits."""
        return self.layers(pixels)


def train(folder: Path, epochs: int) -> None:
    """An ordinary training script; it does not depend on the number of ranks."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    pixels, digits = load_digits(return_X_y=True)
    handler = NNHandler(DigitNet, device="cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    # 64 samples per step over all ranks, for any number of ranks
    handler.set_train_loader((pixels[:1437] / 16.0, digits[:1437]), global_batch_size=64)
    handler.set_val_loader((pixels[1437:] / 16.0, digits[1437:]), batch_size=256)
    handler.fit(epochs=epochs, callbacks=[CSVLogger(folder / "log.csv")], progress_bar=False)
    if handler.world.is_main:  # print on rank 0 only
        print(f"{handler.world.size} process(es), {handler.state.samples_seen} samples seen")


def main() -> None:
    """Train with one rank and with several, compare, plot."""
    options = parse_options()
    if options.train is not None:
        train(options.train, options.epochs)
        return
    counts = (1, options.processes)
    for count in counts:
        run(count, options.output / f"{count}", options.epochs)
    logs = {count: read_log(options.output / f"{count}") for count in counts}
    alone, together = logs.values()
    largest = max(
        abs(a - b) / max(abs(a), 1e-12)
        for row, other in zip(alone, together, strict=True)
        for a, b in zip(row.values(), other.values(), strict=True)
    )
    draw(logs, options.output / "curves.png")
    print(f"reached a validation accuracy of {together[-1]['val_accuracy']:.3f}")
    print(f"losses, metrics and learning rates differ by {largest:.1e} at most, relatively")
    print(f"wrote {options.output / 'curves.png'}")


def run(processes: int, folder: Path, epochs: int) -> None:
    """Train with ``processes`` ranks, and wait."""
    shutil.rmtree(folder, ignore_errors=True)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={processes}"]
    command = [*launcher, __file__, "--train", str(folder), "--epochs", str(epochs)]
    # without it, torchrun sets it to 1 and prints a warning
    ended = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ})
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of the log."""
    with (folder / "log.csv").open(newline="") as lines:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(lines)]


def draw(logs: dict[int, list[dict[str, float]]], path: Path) -> None:
    """Plot the losses over the epochs and their difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, apart = figure.subplots(1, 2)
    losses = {count: [row["val_loss"] for row in rows] for count, rows in logs.items()}
    epochs = range(1, len(next(iter(losses.values()))) + 1)
    for (count, values), width, alpha in zip(losses.items(), (6, 1.5), (0.35, 1.0), strict=True):
        curves.plot(epochs, values, linewidth=width, alpha=alpha, label=f"processes: {count}")
    curves.set(xlabel="epoch", ylabel="validation loss")
    curves.legend()
    first, second = losses.values()
    apart.plot(epochs, [abs(a - b) for a, b in zip(first, second, strict=True)], marker="o")
    apart.set(xlabel="epoch", ylabel="difference of the two")
    apart.ticklabel_format(axis="y", scilimits=(0, 0))
    for axes in (curves, apart):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Train with one rank and with several, and compare."
    )
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each run (20)")
    parser.add_argument("--processes", type=int, default=2, help="processes, at least 2 (2)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/two_processes"), help="folder to write to"
    )
    parser.add_argument(
        "--train", type=Path, help="only train, and write to this folder (used internally)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
