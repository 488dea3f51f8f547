"""How long a training step takes on a device, eager and compiled: fitkit and the loop by hand.

    python tests/benchmarks/devices.py --device cuda          all workloads, some minutes
    python tests/benchmarks/devices.py --device cpu --short --eager

The batches are on the device before, so nothing is read meanwhile. Both take turns, the loop by
hand first and last in each round, and each waits for the device at its end. A figure is the ratio
of fitkit's wall time to the mean of the two; ``compiled`` compares with a compiled model by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parent)]

from speed import SEED, WORKLOADS, Terminal, Workload, say, timed  # noqa: E402  the file beside this one, which finds the package

import fitkit  # noqa: E402

Batches = list[tuple[Tensor, Tensor]]


def batches_on(device: torch.device, workload: Workload) -> Batches:
    """All batches of an epoch, in the order of the data."""
    parts = (tensor.to(device).split(workload.batch_size) for tensor in workload.data())
    return list(zip(*parts, strict=True))


def by_hand(
    workload: Workload, device: torch.device, batches: Batches, compiled: bool
) -> nn.Module:
    model = workload.model().to(device).train()
    optimizer, loss_fn = (
        workload.optimizer(model.parameters(), lr=workload.lr),
        nn.CrossEntropyLoss(),
    )
    called = torch.compile(model) if compiled else model
    for _ in range(workload.epochs):
        for inputs, targets in batches:
            loss_fn(called(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return _finished(model, device)


def by_fitkit(
    workload: Workload,
    device: torch.device,
    batches: Batches,
    compiled: bool,
    *,
    kept: bool = False,
) -> nn.Module:
    handler = fitkit.NNHandler(workload.model(), device, seed=SEED)
    handler.set_optimizer(workload.optimizer, lr=workload.lr)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    if kept:
        handler.add_metric("accuracy", fitkit.Accuracy())
    with contextlib.redirect_stderr(Terminal()):
        handler.fit(batches, epochs=workload.epochs, progress_bar=kept, compile=compiled)
    return _finished(handler.module, device)


def _finished(model: nn.Module, device: torch.device) -> nn.Module:
    """Wait for the device."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return model


def measure(
    workload: Workload, device: torch.device, compiled: bool, repeats: int
) -> list[tuple[str, list[float], float]]:
    """Name, ratios and the difference of the last weights of each row, that of the loop first."""
    batches = batches_on(device, workload)
    hand = lambda: by_hand(workload, device, batches, compiled)  # noqa: E731
    own: dict[str, Callable[[], nn.Module]] = {
        "fitkit": lambda: by_fitkit(workload, device, batches, compiled),
        "fitkit, bar, loss and accuracy": lambda: by_fitkit(
            workload, device, batches, compiled, kept=True
        ),
    }
    expected, found = hand(), {name: train() for name, train in own.items()}
    off = {name: _difference(model, expected) for name, model in found.items()}
    by_name: dict[str, list[float]] = {name: [] for name in own}
    steps = []
    for _ in range(repeats):
        before = timed(hand)[0]
        used = {name: timed(train)[0] for name, train in own.items()}
        mean = (before + timed(hand)[0]) / 2
        steps.append(mean / workload.num_steps * 1e6)
        for name, seconds in used.items():
            by_name[name].append(seconds / mean)
    return [("us by hand", steps, 0.0), *((name, by_name[name], off[name]) for name in own)]


def _difference(model: nn.Module, other: nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--short", action="store_true", help="one small model, two rounds")
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    say(f"{device}, torch {torch.__version__}\n")
    say("| model | how | what | median (range) | weights |")
    say("|---|---|---|---|---|")
    for name, workload in WORKLOADS.items():
        if options.short and name != "mlp":
            continue
        part = replace(workload, num_batches=50) if options.short else workload
        for how in ("eager",) if options.eager else ("eager", "compiled"):
            rows: Any = measure(part, device, how == "compiled", 2 if options.short else 5)
            for what, values, off in rows:
                digits = 0 if what == "us by hand" else 2
                numbers = (statistics.median(values), min(values), max(values))
                median, least, most = (f"{number:.{digits}f}" for number in numbers)
                weights = f"{off:.0e} off" if off else "equal"
                shown = f"{median} ({least} to {most})"
                say(f"| {workload.title} | {how} | {what} | {shown} | {weights} |")


if __name__ == "__main__":
    main()
