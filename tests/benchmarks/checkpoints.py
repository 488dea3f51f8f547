"""What checkpoints cost, as ratios to doing the same by hand, from one interleaved run.

    python tests/benchmarks/checkpoints.py                  # 10 MB, 500 MB and 2 GB
    python tests/benchmarks/checkpoints.py --sizes 10 --rounds 3
    python tests/benchmarks/checkpoints.py --sizes 2000 --rounds 2  # 6 minutes, 12 GB of disk

Each round runs every arm once, one after the other, so that all of them meet the same machine. The
state is that of a model of large linear layers under Adam. Times are wall time. A copy is one into
memory that is there, a clone one into memory that is not, as ``copy.deepcopy`` makes it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fitkit
from fitkit import ModelCheckpoint, NNHandler
from fitkit.checkpointing.loading import read_metadata
from fitkit.core.tree import iterate_tensors

NUM_LAYERS = 12
TARGETS = {
    "background save, blocked / plain copy": 1.5,
    "background save, blocked / clone": 1.5,
    "durable save / torch.save + fsync": 1.3,
    "load, verified / torch.load": 1.0,
    "best + last + periodic / one save": 1.1,
    "peak memory of a background save / state": 1.0,
    "a batch beside a background save / alone": 1.2,
    "save after 100,000 epochs, blocked / 1,000": 1.0,
}


def make_handler(megabytes: float) -> NNHandler:
    """A handler whose whole state has about so many bytes, a third of them weights."""
    width = round((megabytes * 1e6 / 3 / 4 / NUM_LAYERS) ** 0.5)
    layers = [nn.Linear(width, width) for _ in range(NUM_LAYERS)]
    handler = NNHandler(nn.Sequential(*layers), device="cpu", seed=0)
    handler.set_optimizer(torch.optim.Adam, lr=1e-4)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(handler: NNHandler, callbacks: list[fitkit.Callback], steps: int) -> None:
    """Train for so many batches of one sample."""
    width = next(handler.module.parameters()).shape[1]
    data = (torch.ones(steps, width), torch.ones(steps, width))
    handler.fit(data, batch_size=1, callbacks=callbacks, progress_bar=False)


def state_tensors(handler: NNHandler) -> list[Tensor]:
    """The live tensors of the whole state, as a snapshot has them."""
    optimizer: Any = handler.optimizer
    return list(iterate_tensors([dict(handler.module.state_dict()), optimizer.state_dict()]))


def timed(arm: Callable[[], object]) -> float:
    """Seconds that ``arm`` takes."""
    began = time.perf_counter()
    arm()
    return time.perf_counter() - began


class SaveCosts(fitkit.Callback):
    """What each background save costs, if a saver asks for one after every batch."""

    order = 1000

    def __init__(self, skip: int = 2) -> None:
        self.skip = skip
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._before = (0.0, 0.0)

    def on_train_batch_begin(self, batch: int, logs: fitkit.Logs) -> None:
        """How long the save of the last batch blocked training, and how long it took behind it."""
        self.handler.wait_for_saves()
        stats = self.handler.saves.stats
        blocked, behind = self._before
        self._before = stats.blocked_seconds, stats.behind_seconds
        self._add("blocked", self._before[0] - blocked, batch - 1)
        self._add("behind", self._before[1] - behind, batch - 1)

    def _add(self, name: str, seconds: float, batch: int) -> None:
        if batch >= self.skip:  # the first ones find no memory to use again
            self.seconds[name].append(seconds)


class Rounds(SaveCosts):
    """Runs every arm once after each batch; the saver under test has asked just before."""

    def __init__(self, folder: Path, skip: int = 2) -> None:
        super().__init__(skip)
        self.folder = folder
        self._buffers: list[Tensor] = []

    def on_train_batch_begin(self, batch: int, logs: fitkit.Logs) -> None:
        """No save is in flight now."""
        super().on_train_batch_begin(batch, logs)
        if batch:
            self._run_arms(batch - 1)

    def _run_arms(self, batch: int) -> None:
        tensors = state_tensors(self.handler)
        self._buffers = self._buffers or [torch.empty_like(one) for one in tensors]
        pairs = list(zip(self._buffers, tensors, strict=True))
        self._add("copy", timed(lambda: [a.copy_(b) for a, b in pairs]), batch)
        self._add("clone", timed(lambda: [one.clone() for one in tensors]), batch)
        state = fitkit.handler.state_dict.handler_state_dict(self.handler)
        self._add("by hand", timed(lambda: save_by_hand(state, self.folder / "hand.pth")), batch)
        self._add("save", timed(lambda: self.handler.save(self.folder / "ours.pth")), batch)
        path = self.folder / "ours.pth"
        self._add("metadata", timed(lambda: read_metadata(path)), batch)


def save_by_hand(state: Any, path: Path) -> None:
    """What most programs do who want the file to be there after a power cut."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


class Steps(fitkit.Callback):
    """How long a batch takes with and without a save behind it."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._began = 0.0

    def on_train_batch_begin(self, batch: int, logs: fitkit.Logs) -> None:
        """The batch begins."""
        self._busy = self.handler.saves.is_busy
        self._began = time.perf_counter()

    def on_optimizer_step_end(self, step: int, logs: fitkit.Logs) -> None:
        """The batch's work is done; savers have not asked yet."""
        if self._busy == self.handler.saves.is_busy:
            self.seconds[self._busy].append(time.perf_counter() - self._began)


def several_savers(
    handler: NNHandler, folder: Path, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of one saver's save, and of three that ask at the same step."""
    seconds: tuple[list[float], list[float]] = ([], [])
    few = [ModelCheckpoint(folder / "one.pth", save_freq=1)]
    many = [
        ModelCheckpoint(folder / "best.pth", "loss", save_best_only=False, save_freq=1),
        ModelCheckpoint(folder / "last.pth", save_freq=1),
        ModelCheckpoint(folder / "step.pth", save_freq=1),
    ]
    for _ in range(rounds):
        for savers, found in zip((few, many), seconds, strict=True):
            fit(handler, savers, 1)
            found.append(handler.saves.stats.blocked_seconds)
    return seconds


def make_long_run(num_epochs: int) -> NNHandler:
    """A handler of a small model after so many epochs, of four values each."""
    handler = make_handler(0.1)
    columns = {
        name: [math.sin(epoch * rate) for epoch in range(num_epochs)]
        for rate, name in enumerate(["loss", "accuracy", "val_loss", "val_accuracy"], start=1)
    }
    handler.history.load_state_dict({"epoch": list(range(num_epochs)), "history": columns})
    return handler


def long_histories(folder: Path, rounds: int) -> dict[str, list[float]]:
    """What a save costs after 100,000 epochs, as ratios to one after 1,000."""
    handlers = [make_long_run(num_epochs) for num_epochs in (100_000, 1_000)]
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        both = []
        for number, handler in enumerate(handlers):
            costs = SaveCosts()
            saver = ModelCheckpoint(folder / f"{number}.pth", save_freq=1, background=True)
            fit(handler, [saver, costs], 12)
            both.append({name: statistics.median(all_) for name, all_ in costs.seconds.items()})
        for name in both[0]:
            found[name].append(both[0][name] / both[1][name])
    return found


# ---- arms that need a process of their own -------------------------------------------------------


def peak_bytes() -> int:
    """The most memory that this process has had."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def in_memory(megabytes: float, kind: str) -> dict[str, float]:
    """Memory that a save takes at its peak, beyond what was there before."""
    handler = make_handler(megabytes)
    fit(handler, [], 3)
    size = sum(one.nbytes for one in state_tensors(handler))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak_bytes()
    with tempfile.TemporaryDirectory(dir=os.environ["FITKIT_BENCH"]) as folder:
        saver = ModelCheckpoint(Path(folder, "a.pth"), save_freq=2, background=True)
        wait = fitkit.LambdaCallback(on_train_batch_begin=lambda *_: handler.wait_for_saves())
        callbacks = {"none": [], "waiting": [saver], "background": [saver, wait]}
        fit(handler, callbacks[kind], 8)
    return {"value": (peak_bytes() - before) / size}


def in_load(megabytes: float, kind: str) -> dict[str, float]:
    """Seconds until a new process has the state in its model and optimizer."""
    handler = make_handler(megabytes)
    path = Path(os.environ["FITKIT_BENCH"], "ours.pth")
    fit(handler, [], 1)  # both arms find memory and optimizer state in place
    optimizer: Any = handler.optimizer

    def by_hand() -> None:
        state = torch.load(path, weights_only=True)
        handler.module.load_state_dict(state["model_state_dict"])
        optimizer.load_state_dict(state["optimizer_state_dict"])

    def ours() -> None:
        state = fitkit.checkpointing.catalog.latest.read_full(path)
        handler.module.load_state_dict(state["model_state_dict"])
        optimizer.load_state_dict(state["optimizer_state_dict"])

    return {"value": timed(by_hand if kind == "hand" else ours)}


def in_process(function: str, megabytes: float, kind: str, folder: Path) -> float:
    """The value that a function finds in a process of its own."""
    command = [sys.executable, __file__, "--run", function, kind, "--sizes", str(megabytes)]
    environment = {**os.environ, "FITKIT_BENCH": str(folder)}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout)["value"])


# ---- the table ----------------------------------------------------------------------------------


def measure(megabytes: float, rounds: int, folder: Path) -> dict[str, list[float]]:
    """The ratios of each row, one for each round."""
    handler = make_handler(megabytes)
    arms = Rounds(folder)
    saver = ModelCheckpoint(folder / "background.pth", save_freq=1, background=True)
    fit(handler, [saver, arms], rounds + arms.skip + 1)
    found = arms.seconds
    one, three = several_savers(handler, folder, rounds)
    steps = Steps()
    saver = ModelCheckpoint(folder / "a.pth", save_freq=20, background=True)
    fit(handler, [steps, saver], 20 * rounds + 5)
    long = long_histories(folder, rounds)
    loads = [
        (
            in_process("load", megabytes, "ours", folder),
            in_process("load", megabytes, "hand", folder),
        )
        for _ in range(rounds)
    ]
    usual = in_process("memory", megabytes, "none", folder)
    peaks = [in_process("memory", megabytes, k, folder) for k in ("background", "waiting")]
    busy = statistics.median(steps.seconds[True]) if steps.seconds[True] else float("nan")
    return {
        "background save, blocked / plain copy": ratios(found["blocked"], found["copy"]),
        "background save, blocked / clone": ratios(found["blocked"], found["clone"]),
        "durable save / torch.save + fsync": ratios(found["save"], found["by hand"]),
        "load, verified / torch.load": [ours / hand for ours, hand in loads],
        "best + last + periodic / one save": ratios(three, one),
        "peak memory of a background save / state": [peaks[0] - usual],
        "peak memory while another one waits": [peaks[1] - usual],
        "a batch beside a background save / alone": [
            busy / statistics.median(steps.seconds[False])
        ],
        "save after 100,000 epochs, blocked / 1,000": long["blocked"],
        "save after 100,000 epochs, behind / 1,000": long["behind"],
        "metadata, milliseconds": [1e3 * one for one in found["metadata"]],
    }


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Ratios round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def table(megabytes: float, rows: dict[str, list[float]]) -> str:
    """Lines of text: minimum, median and maximum of each row beside its target."""
    lines = [f"state of {megabytes:g} MB", f"{'':42}  target    min  median    max"]
    for name, values in rows.items():
        target = f"{TARGETS[name]:.2f}" if name in TARGETS else "-"
        numbers = (min(values), statistics.median(values), max(values))
        lines.append(f"{name:42}  {target:>6}" + "".join(f" {number:6.2f}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[10, 500, 2000], help="in MB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run:
        function = {"memory": in_memory, "load": in_load}[options.run[0]]
        print(json.dumps(function(options.sizes[0], options.run[1])))
        return
    for megabytes in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(table(megabytes, measure(megabytes, options.rounds, Path(folder))), end="\n\n")


if __name__ == "__main__":
    main()
