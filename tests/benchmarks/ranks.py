"""How long a training step of two processes takes: fitkit, torch's DDP and FSDP by hand, others.

    python tests/benchmarks/ranks.py                    all rows, some minutes
    python tests/benchmarks/ranks.py --short            fewer steps and rounds
    python tests/benchmarks/ranks.py --only "DDP" --repeats 9

Two processes with gloo on one machine, one thread each. All arms train in the same processes and
take turns; a figure is the ratio to the loop by hand of the same kind in the same round, which runs
first and last in it. Each arm starts from the same weights, and ranks see the same samples in each
step, so the last losses are equal up to the order of additions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

sys.path[:0] = [str(Path(__file__).parent)]

from speed import WORKLOADS, Samples, Terminal, Workload, fit, say  # noqa: E402  the file beside this one, which finds the package
from speed_peers import quietly, train_with_accelerate, train_with_lightning  # noqa: E402
from tqdm import tqdm  # noqa: E402

NUM_RANKS = 2
Train = Callable[[Workload], nn.Module]


# ---- by hand ------------------------------------------------------------------------------------


def loader_by_hand(workload: Workload) -> DataLoader[Any]:
    """This rank's part of each batch of all ranks, in the order of the data."""
    samples = Samples(*workload.data())
    return DataLoader(
        samples, workload.batch_size, sampler=DistributedSampler(samples, shuffle=False)
    )


def ddp_by_hand(workload: Workload, *, kept: bool = False) -> nn.Module:
    model, _, loss_fn = workload.build()
    wrapped = DistributedDataParallel(model)
    _train_by_hand(workload, wrapped, loss_fn, kept=kept)
    return model


def fsdp_by_hand(workload: Workload, *, kept: bool = False) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model, _, loss_fn = workload.build()
    fully_shard(model)
    _train_by_hand(workload, model, loss_fn, kept=kept)
    return model


def _train_by_hand(workload: Workload, model: nn.Module, loss_fn: Any, *, kept: bool) -> None:
    optimizer = workload.optimizer(model.parameters(), lr=workload.lr)
    loader = loader_by_hand(workload)
    for _ in range(workload.epochs):
        sums = torch.zeros(3)
        for inputs, targets in tqdm(loader, file=Terminal()) if kept else loader:
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if kept:
                with torch.no_grad():
                    right = (outputs.argmax(dim=1) == targets).sum()
                    sums += torch.stack(
                        [loss.detach() * len(targets), right, right * 0 + len(targets)]
                    )
        if kept:
            dist.all_reduce(sums)


# ---- fitkit and others --------------------------------------------------------------------------


def by_fitkit(workload: Workload, *, strategy: str, kept: bool = False) -> nn.Module:
    loader = DataLoader(Samples(*workload.data()), workload.batch_size)
    return fit(workload, loader, kept=kept, strategy=strategy)


def ddp_by_accelerate(workload: Workload, *, kept: bool = False) -> nn.Module:
    loader = DataLoader(Samples(*workload.data()), workload.batch_size)
    return train_with_accelerate(workload, loader, kept)


def ddp_by_lightning(workload: Workload, *, kept: bool = False) -> nn.Module:
    loader = DataLoader(Samples(*workload.data()), workload.batch_size)
    return train_with_lightning(workload, loader, kept=kept, strategy="ddp", devices=NUM_RANKS)


def arms() -> dict[str, tuple[str, Train]]:
    """What is compared, each with the name of the loop by hand that it is compared with."""
    found: dict[str, tuple[str, Train]] = {}
    for kept, suffix in ((False, ""), (True, ", bar, loss and accuracy")):
        for kind, by_hand in (("DDP", ddp_by_hand), ("FSDP", fsdp_by_hand)):
            name = f"{kind} by hand{suffix}"
            found[name] = name, partial(by_hand, kept=kept)
            own = partial(by_fitkit, strategy=kind.lower(), kept=kept)
            found[f"{kind} by fitkit{suffix}"] = name, own
        for package, train in (("accelerate", ddp_by_accelerate), ("lightning", ddp_by_lightning)):
            if _is_installed(package):
                title = f"DDP by {package.capitalize()}{suffix}"
                found[title] = f"DDP by hand{suffix}", quietly(partial(train, kept=kept))
    return found


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


# ---- taking turns -------------------------------------------------------------------------------


def timed(train: Train, workload: Workload) -> tuple[float, float, nn.Module]:
    """Wall time on this rank, processor time of all ranks, and the model."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    model = train(workload)
    dist.barrier()
    used = torch.tensor(
        [time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64
    )
    dist.all_reduce(used)
    return float(used[0]) / NUM_RANKS, float(used[1]), model


def last_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """All ranks call it, as a sharded model is gathered."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(data[0]), data[1]))


def measure(
    workload: Workload, wanted: dict[str, tuple[str, Train]], repeats: int
) -> dict[str, Any]:
    """Ratios of the rounds by arm, and the last losses."""
    compared: dict[str, list[str]] = {}
    for name, (by_hand, _) in wanted.items():
        compared.setdefault(by_hand, []).append(name)
    trains = {name: train for name, (_, train) in arms().items()}
    found: dict[str, Any] = {}
    for by_hand, names in compared.items():
        others = [name for name in names if name != by_hand]
        for name in (by_hand, *others):  # once before, with the last losses
            _, _, model = timed(trains[name], workload)
            found[name] = {"wall": [], "cpu": [], "loss": last_loss(model, workload.data())}
            found[name]["by hand"] = by_hand
        for _ in range(repeats):
            before, own = (
                timed(trains[by_hand], workload),
                {n: timed(trains[n], workload) for n in others},
            )
            after = timed(trains[by_hand], workload)
            for name, used in own.items():
                for i, kind in enumerate(("wall", "cpu")):
                    found[name][kind].append(2 * used[i] / (before[i] + after[i]))
            found[by_hand]["wall"].append(before[0] / _num_steps(workload) * 1e6)
    return found


def run_rank(options: argparse.Namespace) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    # All ranks share the data out. A call of fit begins and ends with messages, about 30 ms, which
    # must not count as time of the steps.
    num_batches = NUM_RANKS * (200 if options.short else 1600)
    workload = replace(WORKLOADS["mlp"], num_batches=num_batches)
    wanted_parts = [part for part in options.only.split(";") if part]
    wanted = {
        name: arm
        for name, arm in arms().items()
        if not wanted_parts or any(part in name for part in wanted_parts)
    }
    found = measure(workload, wanted, options.repeats or (2 if options.short else 5))
    if dist.get_rank() == 0:
        _report(found, workload)
        if options.json is not None:
            options.json.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _num_steps(workload: Workload) -> int:
    """Of each rank."""
    return workload.num_steps // NUM_RANKS


def _report(found: dict[str, Any], workload: Workload) -> None:
    say(f"\n{workload.title} on each of {NUM_RANKS} ranks, {_num_steps(workload)} steps\n")
    say(f"| {'what':44} | wall: median (range) | processor | last loss |")
    say(f"|{'-' * 46}|----------------------|-----------|-----------|")
    for name, one in found.items():
        if name == one["by hand"]:
            shown, cpu = f"{statistics.median(one['wall']):.0f} us a step", "1.00"
        else:
            wall = one["wall"]
            shown = f"{statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})"
            cpu = f"{statistics.median(one['cpu']):.2f}"
        off = abs(one["loss"] - found[one["by hand"]]["loss"])
        say(f"| {name:44} | {shown:20} | {cpu:>9} | {f'{off:.0e} off' if off else 'equal':9} |")


def launch(arguments: list[str], *, quiet: bool = False) -> None:
    """Run this file with torchrun in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={NUM_RANKS}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={20000 + os.getpid() % 12000}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, __file__, *arguments], check=True, env=environment, capture_output=quiet
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer steps, two rounds")
    parser.add_argument("--only", default="", help="parts of the names of rows, with semicolons")
    parser.add_argument("--repeats", type=int, help="rounds; default: 5")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
    else:
        launch(sys.argv[1:])


if __name__ == "__main__":
    main()
