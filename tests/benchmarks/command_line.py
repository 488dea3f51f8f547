"""What the command line and the imports cost, in processor time.

    python tests/benchmarks/command_line.py                 # 1,000 checkpoints, 15 rounds
    python tests/benchmarks/command_line.py --files 100 --rounds 3

Each round runs every arm once, one after the other, so that all of them meet the same machine.
Imports and ``fitkit ls`` run in processes of their own, as they do for a user; the time is that of
the whole process. The checkpoints are those of runs of a small model, which save after every epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import fitkit
from fitkit.checkpointing.loading import read_metadata

BOUNDS = {
    "import fitkit / import torch": 1.05,
    "from fitkit import NNHandler / import torch": 1.1,
    "fitkit ls, one run, s": 1.5,
    "fitkit ls, nested runs, s": 1.5,
    "metadata, small model, ms": 2.0,
    "metadata, 640 tensors, ms": 2.0,
}
EPOCHS_OF_NESTED_RUN = 10
NUM_LAYERS = {"small": 3, "deep": 80}  # weight and bias of a layer, and three of Adam's for each


def train(folder: Path, epochs: int, num_layers: int, seed: int = 0) -> None:
    """A run that saves to ``folder`` after every epoch."""
    width = 8
    module = nn.Sequential(*(nn.Linear(width, width) for _ in range(num_layers)))
    handler = fitkit.NNHandler(module, device="cpu", seed=seed)
    handler.set_optimizer(torch.optim.Adam, lr=1e-3)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    torch.manual_seed(seed)
    data = (torch.randn(8, width), torch.arange(8))
    saver = fitkit.ModelCheckpoint(folder / "{epoch:04d}.pth")
    handler.fit(
        data, validation_data=data, epochs=epochs, batch_size=8, callbacks=[saver],
        progress_bar=False,
    )  # fmt: skip


def process_seconds(*arguments: str) -> float:
    """Processor time of a Python process, until it has ended."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def metadata_milliseconds(path: Path, repeats: int = 50) -> float:
    """Processor time of ``read_metadata``, the median; reading the file is part of it."""
    found = []
    for _ in range(repeats):
        began = time.thread_time()
        read_metadata(path)
        found.append(1e3 * (time.thread_time() - began))
    return statistics.median(found)


def measure(num_files: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """The values of each row, one for each round."""
    train(folder / "run", num_files, NUM_LAYERS["small"])
    for number in range(num_files // EPOCHS_OF_NESTED_RUN):
        nested = folder / "runs" / f"{number:04d}" / "checkpoints"
        train(nested, EPOCHS_OF_NESTED_RUN, NUM_LAYERS["small"], seed=number)
    train(folder / "deep", 3, NUM_LAYERS["deep"])
    process_seconds("-c", "import fitkit; fitkit.NNHandler")  # compiles what has not been
    found: dict[str, list[float]] = {name: [] for name in BOUNDS}
    for _ in range(rounds):
        of_torch = process_seconds("-c", "import torch")
        values = (
            process_seconds("-c", "import fitkit") / of_torch,
            process_seconds("-c", "from fitkit import NNHandler") / of_torch,
            process_seconds("-m", "fitkit", "ls", str(folder / "run")),
            process_seconds("-m", "fitkit", "ls", str(folder / "runs")),
            metadata_milliseconds(folder / "run" / "0003.pth"),
            metadata_milliseconds(folder / "deep" / "0003.pth"),
        )
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return found


def table(rows: dict[str, list[float]]) -> str:
    """Lines of text: minimum, median and maximum of each row beside its bound."""
    lines = [f"{'':44} bound    min  median    max"]
    for name, values in rows.items():
        numbers = (min(values), statistics.median(values), max(values))
        lines.append(f"{name:44} {BOUNDS[name]:5.2f}" + "".join(f" {one:6.2f}" for one in numbers))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=1000, help="checkpoints in a folder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="also write all values there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # what an installed package has compiled
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options.files, options.rounds, Path(folder))
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
