"""How long a training step takes: fitkit, the plain torch loop, and whatever else is installed.

    python tests/benchmarks/speed.py                    all workloads, a few minutes
    python tests/benchmarks/speed.py --short            one workload, half a minute
    python tests/benchmarks/speed.py --workload conv --repeats 15
    python tests/benchmarks/speed.py --only cost,pace   what a callback costs; a run of many steps

Every figure is a ratio to the plain loop of the same round: all arms take turns in one session,
with the plain loop first, in between and last, on one thread. Each arm starts from the same weights
and sees the same samples in the same order, so its last loss must be the plain loop's; where it is
not, the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import speed_peers  # noqa: E402  the package and the file beside this one, wherever it is run from
from tqdm import tqdm  # noqa: E402

import fitkit  # noqa: E402
from fitkit.data.epoch_sampler import epoch_order  # noqa: E402

SEED = 0


def say(text: str = "") -> None:
    """Write a line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Terminal(io.StringIO):
    """A terminal that nobody watches: bars draw as they would."""

    def isatty(self) -> bool:
        return True


# ---- what is trained ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """A model, its data and its optimizer.

    Attributes:
        title: what the table calls it.
        shape: of one sample.
        classes: of the targets.
        batch_size: samples per batch.
        num_batches: batches per epoch.
        layers: makes the layers of the model.
        optimizer: its class.
        lr: its learning rate.
        epochs: how many are trained.
    """

    title: str
    shape: tuple[int, ...]
    batch_size: int
    num_batches: int
    layers: Callable[[], list[nn.Module]]
    optimizer: type[torch.optim.Optimizer]
    lr: float
    epochs: int = 2
    classes: int = 10

    @property
    def num_steps(self) -> int:
        return self.epochs * self.num_batches

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        size = self.batch_size * self.num_batches
        inputs = torch.randn(size, *self.shape, generator=generator)
        return inputs, torch.randint(self.classes, (size,), generator=generator)

    def model(self) -> nn.Module:
        torch.manual_seed(SEED)
        return nn.Sequential(*self.layers())

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
        model = self.model().train()
        optimizer = self.optimizer(model.parameters(), lr=self.lr)
        return model, optimizer, nn.CrossEntropyLoss()

    def loader(self, dataset: Dataset[Any], **settings: Any) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(SEED)
        return DataLoader(dataset, self.batch_size, shuffle=True, generator=generator, **settings)


def _conv() -> list[nn.Module]:
    return [
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    ]  # fmt: skip


def _wide() -> list[nn.Module]:
    first, second, third = nn.Linear(784, 512), nn.Linear(512, 512), nn.Linear(512, 10)
    return [first, nn.ReLU(), second, nn.ReLU(), third]


WORKLOADS = {
    "mlp": Workload(
        "MLP 32-64-10, batch 32, SGD", (32,), 32, 400,
        lambda: [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)], torch.optim.SGD, 0.01,
    ),
    "wide": Workload(
        "MLP 784-512-512-10, batch 128, Adam", (784,), 128, 40, _wide, torch.optim.Adam, 1e-3
    ),
    "conv": Workload(
        "conv net on 28x28, batch 64, Adam", (1, 28, 28), 64, 40, _conv, torch.optim.Adam, 1e-3
    ),
}  # fmt: skip


class Samples(Dataset[Any]):
    """A data set as users write them."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> Any:
        return self.inputs[index], self.targets[index]


class Batches(Samples):
    """One that fetches a batch at once."""

    def __getitems__(self, indices: list[int]) -> Any:
        return self.inputs[indices], self.targets[indices]


def as_it_is(batch: Any) -> Any:
    return batch


# ---- the loop by hand ---------------------------------------------------------------------------


def plain(workload: Workload, batches: Callable[[int], Any]) -> nn.Module:
    """The loop that everybody writes."""
    model, optimizer, loss_fn = workload.build()
    for epoch in range(workload.epochs):
        for inputs, targets in batches(epoch):
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def plain_kept(workload: Workload, batches: Callable[[int], Any]) -> nn.Module:
    """The same with a bar, and loss and accuracy of each epoch."""
    model, optimizer, loss_fn = workload.build()
    history = []
    for epoch in range(workload.epochs):
        loss_sum, right, number = torch.zeros(()), torch.zeros((), dtype=torch.long), 0
        for inputs, targets in tqdm(batches(epoch), file=Terminal()):
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                loss_sum += loss.detach() * len(targets)
                right += (outputs.argmax(dim=1) == targets).sum()
                number += len(targets)
        history.append((float(loss_sum) / number, float(right) / number))
    return model


def indexed(workload: Workload, data: tuple[Tensor, Tensor]) -> Callable[[int], Iterator[Any]]:
    """Batches by indexing tensors, in the order of fitkit's own shuffling."""
    inputs, targets = data

    def batches(epoch: int) -> Iterator[Any]:
        order = epoch_order(len(inputs), SEED, epoch)
        return ((inputs[index], targets[index]) for index in order.split(workload.batch_size))

    return batches


def fit(workload: Workload, data: Any, *, kept: bool = False, **options: Any) -> nn.Module:
    """The same by ``fitkit``; ``kept``: with its bar, and loss and accuracy of each epoch."""
    strategy = options.pop("strategy", "auto")
    handler = fitkit.NNHandler(workload.model(), seed=SEED, strategy=strategy)
    handler.set_optimizer(workload.optimizer, lr=workload.lr)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    if kept:
        handler.add_metric("accuracy", fitkit.Accuracy())
    if not (options.pop("has_batches", False) or isinstance(data, DataLoader)):
        options["batch_size"] = workload.batch_size
    with contextlib.redirect_stderr(Terminal()):
        handler.fit(data, epochs=workload.epochs, progress_bar=kept, **options)
    return handler.module


# ---- taking turns -------------------------------------------------------------------------------


@dataclass
class Arm:
    """One way to train, and what was measured of it.

    Attributes:
        name: its row in the table.
        train: trains and returns the model.
        reference: the arm whose last loss it must have.
        is_peer: whether it is another package's, which is left out where it does not run.
        wall: ratio to the plain loop, round by round.
        cpu: the same in processor time.
        loss: the last loss.
    """

    name: str
    train: Callable[[], nn.Module]
    reference: str = "plain loop"
    is_peer: bool = False
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    loss: float = float("nan")


def arms_of(workload: Workload, *, peers: bool) -> list[Arm]:
    data = workload.data()
    tensors, samples, batches = TensorDataset(*data), Samples(*data), Batches(*data)
    at_once = {"collate_fn": as_it_is}

    def by_hand(loop: Any, dataset: Any, **settings: Any) -> Callable[[], nn.Module]:
        return lambda: _with_loader(loop, workload, workload.loader(dataset, **settings))

    def by_fit(dataset: Any, **options: Any) -> Callable[[], nn.Module]:
        settings = at_once if dataset is batches else {}
        return lambda: fit(workload, workload.loader(dataset, **settings), **options)

    limit = indexed(workload, data)
    arms = [
        Arm("plain loop", by_hand(plain, tensors)),
        Arm("plain loop, bar, loss and accuracy", by_hand(plain_kept, tensors)),
        Arm("fitkit, own DataLoader", by_fit(tensors)),
        Arm("fitkit, own DataLoader, bar, loss and accuracy", by_fit(tensors, kept=True)),
        Arm("plain loop, your own Dataset", by_hand(plain, samples)),
        Arm("fitkit, your own Dataset", by_fit(samples)),
        Arm("plain loop, __getitems__", by_hand(plain, batches, **at_once)),
        Arm("fitkit, __getitems__", by_fit(batches)),
        Arm("plain loop that indexes tensors", lambda: plain(workload, limit)),
        Arm("fitkit, data in memory", lambda: fit(workload, data)),
        Arm(
            "fitkit, data in memory, bar, loss and accuracy", lambda: fit(workload, data, kept=True)
        ),
    ]
    for arm in arms[-2:]:
        arm.reference = arms[-3].name
    arms[-3].reference = arms[-3].name
    if peers:
        for name, train in speed_peers.installed():
            for kept, suffix in ((False, ""), (True, ", bar, loss and accuracy")):
                by_peer = partial(_with_new_loader, train, workload, tensors, kept)
                arms.append(Arm(f"{name}{suffix}", by_peer, is_peer=True))
    return arms


def _with_new_loader(
    train: Callable[..., nn.Module], workload: Workload, dataset: Dataset[Any], kept: bool
) -> nn.Module:
    return train(workload, workload.loader(dataset), kept)


def _with_loader(loop: Any, workload: Workload, loader: DataLoader[Any]) -> nn.Module:
    return loop(workload, lambda epoch: loader)


def timed(train: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and processor seconds, and what was returned."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = train()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def take_turns(workload: Workload, arms: list[Arm], repeats: int) -> None:
    """Every arm once a round, the plain loop first, in between and last."""
    inputs, targets = workload.data()
    for arm in list(arms):  # the first time builds caches, and shows the last loss
        try:
            model = arm.train().eval()
        except Exception as error:
            if not arm.is_peer:
                raise
            say(f"{arm.name} is left out: {type(error).__name__}: {error}")
            arms.remove(arm)
            continue
        with torch.no_grad():
            arm.loss = float(nn.functional.cross_entropy(model(inputs), targets))
    base, others = arms[0], arms[1:]
    middle = len(others) // 2
    for _ in range(repeats):
        turns = [base, *others[:middle], base, *others[middle:], base]
        times = [(arm, *timed(arm.train)[:2]) for arm in turns]
        wall = statistics.median(seconds for arm, seconds, _ in times if arm is base)
        cpu = statistics.median(seconds for arm, _, seconds in times if arm is base)
        for arm, wall_seconds, cpu_seconds in times:
            arm.wall.append(wall_seconds / wall)
            arm.cpu.append(cpu_seconds / cpu)


def show(workload: Workload, arms: list[Arm]) -> None:
    losses = {arm.name: arm.loss for arm in arms}
    say(f"\n{workload.title}: {workload.num_steps} steps, ratio to the plain loop\n")
    say(f"| {'what':46} |  min | median |  max | processor | last loss |")
    say(f"|{'-' * 48}|-----:|-------:|-----:|----------:|-----------|")
    for arm in arms:
        wanted = losses[arm.reference]
        message = "equal" if arm.loss == wanted else f"{arm.loss:.6g}, not {wanted:.6g}"
        values = f"{min(arm.wall):4.2f} | {statistics.median(arm.wall):6.2f} | {max(arm.wall):4.2f}"
        say(f"| {arm.name:46} | {values} | {statistics.median(arm.cpu):9.2f} | {message:9} |")


# ---- what a callback costs, and a long run ------------------------------------------------------


class Idle(fitkit.Callback):
    """Overrides nothing of the batch."""

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        pass


class Counting(fitkit.Callback):
    """Counts batches."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        self.count += 1


def cost_of_callbacks(repeats: int) -> dict[str, float]:
    """Microseconds per batch of ten idle callbacks together, and of each one that counts."""
    workload = WORKLOADS["mlp"]
    data = workload.data()
    sets: dict[str, Callable[[], list[fitkit.Callback]]] = {
        "none": list,
        "ten idle": lambda: [Idle() for _ in range(10)],
        "ten counting": lambda: [Counting() for _ in range(10)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(max(5, repeats)):
        for name, make in sets.items():
            train = lambda make=make: fit(workload, data, callbacks=make())  # noqa: E731
            seconds[name].append(timed(train)[1])
    # what others do on the machine only adds time, so the least is the nearest to the truth
    least = {name: min(values) / workload.num_steps * 1e6 for name, values in seconds.items()}
    idle, counting = least["ten idle"] - least["none"], least["ten counting"] - least["none"]
    say(f"\nten callbacks that override nothing of the batch: {idle:+.2f} us per batch together")
    say(f"each callback that counts batches: {counting / 10:+.2f} us per batch")
    return {"idle_microseconds": idle, "counting_microseconds": counting / 10}


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Pace(fitkit.Callback):
    """Notes time and memory twenty times in a run of ``num_steps`` steps."""

    def __init__(self, num_steps: int) -> None:
        self.every = num_steps // 20
        self.notes: list[tuple[float, float]] = []

    def on_train_begin(self, logs: Any) -> None:
        self.notes.append((time.process_time(), resident_megabytes()))

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        if self.handler.state.global_step % self.every == 0:
            self.notes.append((time.process_time(), resident_megabytes()))


def pace(num_steps: int) -> dict[str, float]:
    """One epoch of many tiny steps, then many epochs of one: does it slow down, does it grow?"""
    tiny = Workload("", (2,), 1, num_steps, lambda: [nn.Linear(2, 10)], torch.optim.SGD, 0.01, 1)
    clock = Pace(num_steps)
    fit(tiny, tiny.data(), kept=True, callbacks=[clock])
    spans = [later[0] - earlier[0] for earlier, later in pairwise(clock.notes)]
    slowdown = statistics.median(spans[-5:]) / statistics.median(spans[:5])
    growth = clock.notes[-1][1] - clock.notes[1][1]
    say(f"\n{num_steps} tiny steps with everything kept: the last quarter takes {slowdown:.2f} of "
        f"the first, memory grows by {growth:.1f} MB")  # fmt: skip
    few = Workload("", (2,), 8, 2, tiny.layers, torch.optim.SGD, 0.01, 10)
    many = Workload("", (2,), 8, 2, tiny.layers, torch.optim.SGD, 0.01, 1000)
    fit(few, few.data(), kept=True)
    before = resident_megabytes()
    fit(many, many.data(), kept=True)
    epochs_growth = resident_megabytes() - before
    say(f"memory after 1000 epochs, beyond that after 10: {epochs_growth:.1f} MB")
    return {"slowdown": slowdown, "growth": growth, "epochs_growth": epochs_growth}


def set_up(repeats: int) -> float:
    """Milliseconds of a ``fit`` of one step, most of which is its set-up."""
    workload = WORKLOADS["mlp"]
    first = tuple(tensor[: workload.batch_size] for tensor in workload.data())
    one = Workload("", (32,), 32, 1, workload.layers, torch.optim.SGD, 0.01, 1)
    seconds = [timed(lambda: fit(one, first, kept=True))[0] for _ in range(max(5, repeats))]
    milliseconds = statistics.median(seconds) * 1e3
    say(f"\na fit of one step, model and handler included: {milliseconds:.1f} ms")
    return milliseconds


# ---- the command --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--repeats", type=int, help="rounds, each with every arm; 9, short 3")
    parser.add_argument("--short", action="store_true", help="the first workload, few rounds")
    parser.add_argument("--only", default="table,cost,pace,setup", help="which parts, with commas")
    parser.add_argument("--steps", type=int, default=200_000, help="of the long run")
    parser.add_argument("--no-peers", action="store_true", help="leave other packages out")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.short:
        options.workload, options.steps = "mlp", 20_000
    options.repeats = options.repeats or (3 if options.short else 9)
    torch.set_num_threads(1)
    parts = options.only.split(",")
    found: dict[str, Any] = {"torch": torch.__version__, "tables": {}}
    names = list(WORKLOADS) if options.workload == "all" else [options.workload]
    for name in names if "table" in parts else ():
        arms = arms_of(WORKLOADS[name], peers=not options.no_peers)
        take_turns(WORKLOADS[name], arms, options.repeats)
        show(WORKLOADS[name], arms)
        found["tables"][name] = {arm.name: vars(arm) | {"train": None} for arm in arms}
    if "cost" in parts:
        found["cost"] = cost_of_callbacks(options.repeats)
    if "setup" in parts:
        found["setup"] = set_up(options.repeats)
    if "pace" in parts:
        found["pace"] = pace(options.steps)
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
