"""How long a training step takes for each kind of data: fitkit against the loop by hand.

    python tests/benchmarks/loaders.py                  every kind, five rounds, some minutes
    python tests/benchmarks/loaders.py --short          fewer steps, two rounds
    python tests/benchmarks/loaders.py --only "Sampler;list" --repeats 9
    python tests/benchmarks/loaders.py --peers          other packages that are installed, too

Both arms read a new loader of the same kind, and take turns: the loop by hand first and last in
each round. A figure is the ratio of fitkit's time to the mean of the two, the median of the rounds;
one thread, the small MLP of ``speed.py``. The last losses are equal where nothing draws random
numbers from the global streams, which fitkit gives to each sample by its place in the run.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

sys.path[:0] = [str(Path(__file__).parent)]

import speed_peers  # noqa: E402
from speed import SEED, WORKLOADS, Samples, Terminal, Workload, fit, plain, say, timed  # noqa: E402  the file beside this one, which finds the package
from tqdm import tqdm  # noqa: E402

import fitkit  # noqa: E402

Data = tuple[Tensor, Tensor]


class DrawsFromTorch(Samples):
    """Noise on each sample."""

    def __getitem__(self, index: Any) -> Any:
        return self.inputs[index] + 0.1 * torch.randn(self.inputs.shape[1]), self.targets[index]


class DrawsFromPythonAndNumpy(Samples):
    """A scale and a shift of each sample."""

    def __getitem__(self, index: Any) -> Any:
        inputs = self.inputs[index] * random.uniform(0.9, 1.1) + np.random.uniform(-0.1, 0.1)
        return inputs, self.targets[index]


class Own(Sampler):
    """An order of the user's own, from a generator of its own."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        yield from np.random.default_rng(self.epoch).permutation(self.size).tolist()


class OwnBatches(Own):
    """Batches in such an order."""

    def __init__(self, size: int, batch_size: int) -> None:
        super().__init__(size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Any:
        order = list(super().__iter__())
        for begin in range(0, self.size, self.batch_size):
            yield order[begin : begin + self.batch_size]


class Stream(IterableDataset):
    """Samples in their order."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*self.data, strict=True))


class Generated:
    """Batches that a generator makes for each pass."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __iter__(self) -> Iterator[Any]:
        inputs, targets = self.data
        for begin in range(0, len(inputs), self.batch_size):
            yield inputs[begin : begin + self.batch_size], targets[begin : begin + self.batch_size]


def collate(samples: list[Any]) -> Any:
    """As users write it."""
    inputs, targets = zip(*samples, strict=True)
    return torch.stack(inputs), torch.stack(targets)


def kinds(workload: Workload) -> dict[str, Callable[[], Any]]:
    """What makes a loader, by the name of its kind."""
    data = workload.data()
    size, batch_size = len(data[0]), workload.batch_size
    tensors, samples = TensorDataset(*data), Samples(*data)
    at_once = {"batch_size": batch_size}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(SEED)

    def sampled(sampler: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: DataLoader(tensors, sampler=sampler(), **at_once)

    def shuffled(dataset: Any, **options: Any) -> Callable[[], Any]:
        return lambda: workload.loader(dataset, **options)

    return {
        "TensorDataset, shuffled": shuffled(tensors),
        "RandomSampler": sampled(lambda: RandomSampler(tensors, generator=generator())),
        "WeightedRandomSampler": sampled(
            lambda: WeightedRandomSampler([1.0] * size, size, generator=generator())
        ),
        "SubsetRandomSampler": sampled(lambda: SubsetRandomSampler(range(size), generator())),
        "Subset": shuffled(Subset(tensors, range(size))),
        "BatchSampler": lambda: DataLoader(
            tensors,
            batch_sampler=BatchSampler(
                RandomSampler(tensors, generator=generator()), batch_size, False
            ),
        ),
        "Dataset of one's own": shuffled(samples),
        "Sampler of one's own": sampled(lambda: Own(size)),
        "batch sampler of one's own": lambda: DataLoader(
            tensors, batch_sampler=OwnBatches(size, batch_size)
        ),
        "collate_fn of one's own": shuffled(samples, collate_fn=collate),
        "IterableDataset": lambda: DataLoader(Stream(data), **at_once),
        "list of batches": lambda: list(Generated(data, batch_size)),
        "generator of batches": lambda: Generated(data, batch_size),
        "2 workers": shuffled(samples, num_workers=2),
        "items that draw from torch": shuffled(DrawsFromTorch(*data)),
        "items that draw from random and NumPy": shuffled(DrawsFromPythonAndNumpy(*data)),
        "2 workers, items that draw from torch": shuffled(DrawsFromTorch(*data), num_workers=2),
    }


# ---- what is compared ----------------------------------------------------------------------------

Train = Callable[[Workload, Any], Any]


def step_by_hand(workload: Workload, loader: Any) -> nn.Module:
    return plain(workload, lambda epoch: loader)


def step_by_fit(workload: Workload, loader: Any) -> nn.Module:
    return fit(workload, loader, **_options_for(loader))


def _options_for(loader: Any) -> dict[str, Any]:
    return {} if isinstance(loader, DataLoader) else {"has_batches": True}


def _saver(queue: Queue[Any], path: Path) -> Thread:
    """Writes each state that it is given, behind training."""

    def write() -> None:
        while (state := queue.get()) is not None:
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)

    thread = Thread(target=write)
    thread.start()
    return thread


def everything_by_hand(workload: Workload, loader: Any) -> nn.Module:
    """Bar, loss, accuracy, CSV, two background savers, stopping, averaged weights, validation."""
    model, optimizer, loss_fn = workload.build()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    held_out = DataLoader(TensorDataset(*_held_out(workload)), workload.batch_size)
    with TemporaryDirectory() as folder, (Path(folder) / "log.csv").open("w") as log:
        queues: list[Queue[Any]] = [Queue(), Queue()]
        savers = [_saver(q, Path(folder) / f"{i}.pth") for i, q in enumerate(queues)]
        best, waited = float("inf"), 0
        for epoch in range(workload.epochs):
            model.train()
            sums = torch.zeros(2)
            bar = tqdm(loader, file=Terminal())
            for inputs, targets in bar:
                outputs = model(inputs)
                loss = loss_fn(outputs, targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                average.update_parameters(model)
                with torch.no_grad():
                    sums[0] += loss.detach() * len(targets)
                    sums[1] += (outputs.argmax(dim=1) == targets).sum()
            average.eval()
            with torch.no_grad():
                for inputs, targets in held_out:
                    outputs = average(inputs)
                    sums += torch.stack(
                        [
                            loss_fn(outputs, targets) * len(targets),
                            (outputs.argmax(dim=1) == targets).sum().float(),
                        ]
                    )
            log.write(f"{epoch},{float(sums[0])},{float(sums[1])}\n")
            log.flush()
            state = copy.deepcopy(
                [model.state_dict(), average.state_dict(), optimizer.state_dict(), epoch]
            )
            queues[0].put(state)
            waited += 1
            if float(sums[0]) < best:
                best, waited = float(sums[0]), 0
                queues[1].put(state)
            if waited > 10:
                break
        for queue, saver in zip(queues, savers, strict=True):
            queue.put(None)
            saver.join()
    return model


def everything_by_fit(workload: Workload, loader: Any) -> nn.Module:
    with TemporaryDirectory() as folder:
        callbacks = [
            fitkit.CSVLogger(f"{folder}/log.csv"),
            fitkit.ModelCheckpoint(f"{folder}/last.pth", background=True),
            fitkit.ModelCheckpoint(f"{folder}/best.pth", save_best_only=True, background=True),
            fitkit.EarlyStopping(patience=10),
        ]
        return fit(
            workload,
            loader,
            kept=True,
            callbacks=callbacks,
            ema_decay=0.99,
            validation_data=_held_out(workload),
            **_options_for(loader),
        )


def _held_out(workload: Workload) -> Data:
    return tuple(tensor[: 40 * workload.batch_size] for tensor in workload.data())


def evaluate_by_hand(workload: Workload, loader: Any) -> float:
    model, _, loss_fn = workload.build()
    model.eval()
    loss_sum, number = torch.zeros(()), 0
    with torch.no_grad():
        for _ in range(workload.epochs):
            for inputs, targets in loader:
                loss_sum += loss_fn(model(inputs), targets) * len(targets)
                number += len(targets)
    return float(loss_sum) / number


def _handler(workload: Workload) -> fitkit.NNHandler:
    handler = fitkit.NNHandler(workload.model(), seed=SEED)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


def evaluate_by_fitkit(workload: Workload, loader: Any) -> float:
    handler = _handler(workload)
    losses = [handler.evaluate(loader)["loss"] for _ in range(workload.epochs)]
    return losses[-1]


def predict_by_hand(workload: Workload, loader: Any) -> float:
    model = workload.model().eval()
    for _ in range(workload.epochs):
        with torch.no_grad():
            outputs = torch.cat([model(inputs) for inputs, _ in loader])
    return float(outputs.double().sum())


def predict_by_fitkit(workload: Workload, loader: Any) -> float:
    handler = _handler(workload)
    for _ in range(workload.epochs):
        outputs = handler.predict(loader)
    return float(outputs.double().sum())


def predict_batches_by_hand(workload: Workload, loader: Any) -> float:
    model = workload.model().eval()
    total = 0.0
    with torch.no_grad():
        for _ in range(workload.epochs):
            for inputs, _targets in loader:
                total += len(model(inputs))
    return total


def predict_batches_by_fitkit(workload: Workload, loader: Any) -> float:
    handler, total = _handler(workload), 0.0
    for _ in range(workload.epochs):
        for outputs in handler.predict_batches(loader):
            total += len(outputs)
    return total


COMPARED: dict[str, tuple[Train, Train]] = {
    "step": (step_by_hand, step_by_fit),
    "everything": (everything_by_hand, everything_by_fit),
    "evaluate": (evaluate_by_hand, evaluate_by_fitkit),
    "predict": (predict_by_hand, predict_by_fitkit),
    "predict_batches": (predict_batches_by_hand, predict_batches_by_fitkit),
}


def figure(result: Any, data: Data) -> float:
    """The last loss of a model, or the number itself."""
    if not isinstance(result, nn.Module):
        return float(result)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(result.eval()(data[0]), data[1]))


def measure(
    workload: Workload, what: str, make: Callable[[], Any], repeats: int, peers: dict[str, Any]
) -> dict[str, Any]:
    """Ratios of the rounds, and the figures of both; of ``peers`` the ratios of processor time."""
    by_hand, by_fitkit = (partial(_with_new, one, workload, make) for one in COMPARED[what])
    figures = [figure(run(), workload.data()) for run in (by_hand, by_fitkit)]
    wall, cpu = [], []
    others = {name: partial(_with_new, one, workload, make) for name, one in peers.items()}
    last = {name: figure(model, workload.data()) for name, model in _that_run(others).items()}
    of_others: dict[str, list[float]] = {name: [] for name in last}
    for _ in range(repeats):
        first, own = timed(by_hand), timed(by_fitkit)
        used = {name: timed(others[name])[1] for name in of_others}
        second = timed(by_hand)
        wall.append(2 * own[0] / (first[0] + second[0]))
        cpu.append(2 * own[1] / (first[1] + second[1]))
        for name, seconds in used.items():
            of_others[name].append(2 * seconds / (first[1] + second[1]))
    of_peers = {name: {"cpu": ratios, "figure": last[name]} for name, ratios in of_others.items()}
    return {"wall": wall, "cpu": cpu, "figures": figures, "peers": of_peers}


def _that_run(others: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The models of those that take such a loader; of the rest the table says nothing."""
    found = {}
    for name, train in others.items():
        try:
            found[name] = train()
        except Exception as error:  # noqa: BLE001  whatever another package raises
            say(f"{name} does not take it: {type(error).__name__}: {str(error).splitlines()[:1]}")
    return found


def _peers(make: Callable[[], Any]) -> dict[str, Any]:
    """The other packages that are installed, for a loader of torch, which all take."""
    if not isinstance(make(), DataLoader):
        return {}
    return {name: partial(_without_extras, train) for name, train in speed_peers.installed()}


def _without_extras(train: Callable[..., nn.Module], workload: Workload, loader: Any) -> nn.Module:
    return train(workload, loader, False)


def _with_new(run: Train, workload: Workload, make: Callable[[], Any]) -> Any:
    return run(workload, make())


def _row(name: str, wall: str, cpu: list[float], off: float) -> str:
    message = f"{abs(off):.0e} off" if off else "equal"
    return f"| {name:38} | {wall:20} | {statistics.median(cpu):9.2f} | {message:8} |"


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of docs/performance.md: medians, and the range of the first; the worst first."""

    def cell(one: dict[str, Any], *, ranged: bool) -> str:
        wall = one["wall"]
        median = f"{statistics.median(wall):.2f}"
        return f"{median} ({min(wall):.2f} to {max(wall):.2f})" if ranged else median

    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: -statistics.median(first[name]["wall"]))
    return [
        f"| kind of data | {' | '.join(found)} |",
        "|---" * (len(found) + 1) + "|",
        *(
            f"| {name} | "
            + " | ".join(cell(of[name], ranged=of is first) for of in found.values())
            + " |"
            for name in names
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer steps, two rounds")
    parser.add_argument("--only", default="", help="parts of the names of kinds, with semicolons")
    parser.add_argument("--what", default="step", help=f"of {', '.join(COMPARED)}, with commas")
    parser.add_argument("--repeats", type=int, help="rounds; default: 5")
    parser.add_argument("--peers", action="store_true", help="other packages too, for a step")
    parser.add_argument("--json", type=Path, help="write what was measured there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = WORKLOADS["mlp"]
    repeats = options.repeats or (2 if options.short else 5)
    if options.short:
        workload = replace(workload, epochs=1)
    wanted = [part for part in options.only.split(";") if part]
    found: dict[str, dict[str, Any]] = {}
    for what in options.what.split(","):
        found[what] = {}
        say(f"\n{workload.title}, {workload.num_steps} batches, {repeats} rounds: {what}\n")
        say(f"| {'kind of data':38} | wall: median (range) | processor | figures  |")
        say(f"|{'-' * 40}|----------------------|-----------|----------|")
        for name, make in kinds(workload).items():
            if wanted and not any(part in name for part in wanted):
                continue
            peers = _peers(make) if options.peers and what == "step" else {}
            one = found[what][name] = measure(workload, what, make, repeats, peers)
            wall, cpu, (by_hand, own) = one["wall"], one["cpu"], one["figures"]
            shown = f"{statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})"
            say(_row(name, shown, cpu, own - by_hand))
            for peer, of_peer in one["peers"].items():
                say(_row(f"- {peer}", "", of_peer["cpu"], of_peer["figure"] - by_hand))
    if len(found) > 1:
        say("\n" + "\n".join(summary(found)))
    if options.json is not None:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
