"""Runs that begin differently on two ranks; ``test_compare_ranks.py`` starts them, in one launch.

Leaves ``OUT/rank<r>.json``: for each case what was raised or found, and the seconds it took.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import fitkit
from fitkit import Callback, NNHandler

X = torch.arange(32.0)[:, None]
Y = X.clone()
OUT = Path(sys.argv[1] if __name__ == "__main__" else ".")


class Counting(Dataset):
    """Notes which samples are loaded."""

    def __init__(self, size=32):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return X[index], Y[index]


class Own(IterableDataset):
    """The part of a rank, which may be longer on rank 0."""

    def __init__(self, rank, more=0):
        self.rank, self.more = rank, more

    def __iter__(self):
        stop = 20 + (0 if self.rank else self.more)
        return ((X[k], Y[k]) for k in range(self.rank, stop, 2))


class Named(Dataset):
    """Loads the samples that it has the names of, as files."""

    def __init__(self, names):
        self.names = list(names)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return X[int(self.names[index])], Y[int(self.names[index])]


class OwnSampler(torch.utils.data.Sampler):
    """As that of other libraries."""

    def __init__(self, rank, num_replicas):
        self.rank, self.num_replicas = rank, num_replicas

    def __len__(self):
        return 16

    def __iter__(self):
        return iter(range(self.rank, 32, self.num_replicas))


class SplitByNode(Own):
    """As a dataset of ``datasets`` after ``split_dataset_by_node``."""

    class _Distributed:
        world_size = 2

    _distributed = _Distributed()


class Pipeline(Own):
    """As a dataset of ``webdataset``."""

    def __init__(self, rank):
        super().__init__(rank)

        def split_by_node(source):
            return source

        self.pipeline = [split_by_node]


class Silent(Callback):
    """A callback of a user, which reads and logs."""

    def on_train_batch_end(self, batch, logs):
        self.loss = logs["loss"]

    def on_epoch_end(self, epoch, logs):
        self.log("mine", 3.0)


def make(rank, *, width=1, lr=0.1, seed=0, scheduler=None, **optimizer) -> NNHandler:
    """A handler of one weight and one bias."""
    handler = NNHandler(nn.Linear(1, width), "cpu", seed=seed)
    handler.set_optimizer(torch.optim.SGD, lr=lr, **optimizer)
    if scheduler is not None:
        handler.set_scheduler(torch.optim.lr_scheduler.StepLR, **scheduler)
    handler.set_loss_fn(lambda outputs, targets: outputs.square().mean() * 1e-6)
    return handler


def fit(handler, data=None, **options):
    """One epoch by default; how many samples were trained, and the sum of their numbers."""
    data = TensorDataset(X, Y) if data is None else data
    has_batches = isinstance(data, (DataLoader, list, Iterator))
    batch = {} if has_batches else {"batch_size": 4}
    handler.add_metric("sum", Sum())
    options = {"epochs": 1, "progress_bar": False, **batch, **options}
    history = handler.fit(data, **options).history
    return {"samples": handler.state.samples_seen, "sum": history["sum"][-1]}


class Sum(fitkit.Metric):
    """The sum of the targets: the numbers of the samples."""

    def update(self, outputs, targets):
        return [targets.sum()]

    def compute(self, sums):
        return sums[0]


def differences(rank: int) -> dict[str, object]:
    """Calls that must be one error on both ranks, by name."""
    other = rank == 1
    saver = [fitkit.ModelCheckpoint(OUT / "saves" / "last.pth")]
    small = torch.optim.lr_scheduler.StepLR

    def scheduled():
        handler = make(rank, scheduler={"step_size": 2 + other})
        return fit(handler)

    def without_scheduler():
        handler = make(rank)
        if other:
            handler.set_scheduler(small, step_size=1)
        return fit(handler)

    def more_sets():
        sets = {"a": (X, Y), "b": (X, Y)}
        return fit(make(rank), validation_data=sets if other else {"a": (X, Y)})

    def savers(*arguments):
        return [fitkit.ModelCheckpoint(OUT / "s.pth", save_freq=n) for n in arguments]

    return {
        "epochs": lambda: fit(make(rank), epochs=1 + other),
        "batch size": lambda: fit(make(rank), batch_size=4 + other),
        "max_steps": lambda: fit(make(rank), max_steps=3 + other),
        "accumulation": lambda: fit(make(rank), gradient_accumulation_steps=1 + other),
        "steps per epoch": lambda: fit(make(rank), steps_per_epoch=5 if other else None),
        "clipping": lambda: fit(make(rank), gradient_clipping_norm=1.0 if other else None),
        "drop_last": lambda: fit(make(rank), drop_last=other),
        "length": lambda: fit(make(rank), Counting(32 - other)),
        "list": lambda: fit(make(rank), [(X, Y)] * (2 + other)),
        "validation": lambda: fit(make(rank), validation_data=(X, Y) if other else None),
        "validation length": lambda: fit(
            make(rank), validation_data=(X[: 20 + other], Y[: 20 + other])
        ),
        "validation sets": more_sets,
        "lr": lambda: fit(make(rank, lr=0.1 + 0.1 * other)),
        "momentum": lambda: fit(make(rank, momentum=0.9 * other)),
        "scheduler arguments": scheduled,
        "scheduler": without_scheduler,
        "model": lambda: fit(make(rank, width=1 + other)),
        "saver": lambda: fit(make(rank), callbacks=[] if other else saver),
        "saver arguments": lambda: fit(make(rank), callbacks=savers(2 + other)),
        "number of savers": lambda: fit(make(rank), callbacks=savers(2, 3)[: 2 - other]),
        "EMA": lambda: fit(make(rank), ema_decay=0.9 if other else 0.0),
        "early stopping": lambda: fit(
            make(rank), callbacks=[fitkit.EarlyStopping("loss")] if other else []
        ),
        "resume": lambda: fit(make(rank), callbacks=saver, resume=True if other else None),
        "split": lambda: fit(make(rank), Own(rank), split="rank" if other else "auto"),
        "generator": lambda: fit(
            make(rank),
            DataLoader(Counting(), 4, shuffle=True, generator=torch.Generator().manual_seed(rank)),
        ),
        "overlapping subsets": lambda: fit(
            make(rank), DataLoader(Subset(Counting(), range(4 * rank, 28 + 4 * rank)), 4)
        ),
        "nothing for a rank": lambda: fit(
            make(rank), (X[: 8 - 8 * rank], Y[: 8 - 8 * rank]), split="rank"
        ),
        "evaluate": lambda: make(rank).evaluate((X[: 20 + other], Y[: 20 + other])),
    }


class Empty(IterableDataset):
    """Has samples on rank 0 only."""

    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        return iter([] if self.rank else [(X[0], Y[0])] * 4)


def allowed(rank: int, size: int) -> dict[str, object]:
    """Calls that differ and work."""
    whole, main = Counting(), rank == 0
    part = Subset(whole, range(rank, 32, size))
    parts = (X[rank::2][: 16 - 5 * rank], Y[rank::2][: 16 - 5 * rank])
    own_saver = [fitkit.ModelCheckpoint(OUT / f"of_rank{rank}" / "last.pth")]
    observers = [fitkit.CSVLogger(OUT / "log.csv"), fitkit.ProgressBar(), fitkit.ConsoleLogger()]

    def without_seed():
        torch.manual_seed(100 + rank)
        handler = make(rank, seed=None)
        seen = []
        add = fitkit.LambdaCallback(on_epoch_end=lambda *_: seen.append(handler.seeds.data))
        fit(handler, callbacks=[add])
        return seen

    def with_seeds():
        handler = make(rank, seed=5 + rank)
        found = fit(handler, seed=None if main else 9)
        return [found, handler.seed, handler.seeds.data]

    def loader(**options):
        return lambda: fit(make(rank), DataLoader(whole, **options))

    def sampler():
        return DistributedSampler(whole, size, rank, shuffle=True)

    return {
        "paths": lambda: fit(make(rank), callbacks=own_saver),
        "observers on rank 0": lambda: fit(make(rank), callbacks=observers if main else []),
        "a progress bar on rank 0": lambda: fit(make(rank), progress_bar=main),
        "a callback on rank 0": lambda: fit(make(rank), callbacks=[Silent()] if main else []),
        "a callback on rank 1": lambda: fit(make(rank), callbacks=[] if main else [Silent()]),
        "without a seed": without_seed,
        "with other seeds": with_seeds,
        "order of sets": lambda: fit(
            make(rank), validation_data=dict.fromkeys("ab" if main else "ba", (X, Y))
        ),
        "DistributedSampler": loader(batch_size=4, sampler=sampler()),
        "BatchSampler": loader(batch_sampler=BatchSampler(sampler(), 4, False)),
        "a sampler of another library": loader(batch_size=4, sampler=OwnSampler(rank, size)),
        "its batch sampler": loader(batch_sampler=BatchSampler(OwnSampler(rank, size), 4, False)),
        "SubsetRandomSampler": loader(batch_size=4, sampler=SubsetRandomSampler(part.indices)),
        "Subset": lambda: fit(make(rank), part),
        "DataLoader of Subset": lambda: fit(make(rank), DataLoader(part, 4, shuffle=True)),
        "subsets of other lengths": lambda: fit(
            make(rank), DataLoader(Subset(whole, range(20 * rank, 20 + 12 * rank)), 4)
        ),
        "split_dataset_by_node": lambda: fit(make(rank), SplitByNode(rank)),
        "split_by_node": lambda: fit(make(rank), Pipeline(rank)),
        "stream": lambda: fit(make(rank), Own(rank), split="rank"),
        "longer stream": lambda: fit(make(rank), Own(rank, 12), split="rank", epochs=2),
        "weights": lambda: weights_after(Own(rank, 12)),
        "loader of a stream": lambda: fit(
            make(rank), DataLoader(Own(rank, 12), 4, num_workers=1), split="rank"
        ),
        "arrays": lambda: fit(make(rank), parts, split="rank", gradient_accumulation_steps=3),
        "list": lambda: fit(make(rank), [(X[:4], Y[:4])] * (3 + 2 * rank), split="rank"),
        "validation": lambda: fit(
            make(rank), parts, split="rank", validation_data=(parts[0][:5], parts[1][:5])
        ),
        "evaluate": lambda: make(rank).evaluate(parts, split="rank"),
        "undeclared stream": lambda: fit(make(rank), Own(rank)),
        "undeclared longer stream": lambda: fit(make(rank), Own(rank, 12), epochs=2),
        "undeclared loader": lambda: fit(
            make(rank), DataLoader(Own(rank, 12), 4, num_workers=1), epochs=2
        ),
        "undeclared generator": lambda: fit(
            make(rank), ((X[i : i + 4], Y[i : i + 4]) for i in range(4 * rank, 32, 8))
        ),
        "undeclared list": lambda: fit(
            make(rank), [(X[i : i + 4], Y[i : i + 4]) for i in range(4 * rank, 32, 8)]
        ),
        "undeclared arrays": lambda: fit(make(rank), (X[rank::2], Y[rank::2])),
        "undeclared names": lambda: fit(make(rank), Named(map(str, range(rank, 32, size)))),
        "undeclared loader of names": lambda: fit(
            make(rank), DataLoader(Named(map(str, range(rank, 32, size))), 4, shuffle=True)
        ),
        "undeclared evaluation": lambda: evaluate(make(rank)),
        "declared evaluation": lambda: evaluate(make(rank), split="rank"),
    }


def evaluate(handler, **options) -> dict[str, float]:
    """The sum over parts of other lengths."""
    handler.add_metric("sum", Sum())
    return {"sum": handler.evaluate(Own(handler.world.rank, 12), **options)["sum"]}


def weights_after(stream: Own) -> list[float]:
    """The weights after an epoch."""
    handler = make(stream.rank, lr=1e3)
    with torch.no_grad():
        for parameter in handler.module.parameters():
            parameter.fill_(0.5)
    fit(handler, stream, split="rank")
    return [p.item() for p in handler.module.parameters()]


def resumed(rank: int, kind: str) -> list[list[float]]:
    """The weights after three epochs of data that is longer on rank 0: whole, and cut each time."""
    data = (X[rank::2][: 16 - 7 * rank], Y[rank::2][: 16 - 7 * rank])
    data = {
        "arrays": data,
        "loader": DataLoader(Subset(Counting(), range(20 * rank, 20 + 12 * rank)), 4, shuffle=True),
        "stream": Own(rank, 12),
        "undeclared stream": Own(rank, 12),
    }[kind]
    split = "auto" if kind == "undeclared stream" else "rank"
    folder, weights = OUT / f"resumed {kind}", []
    files = [None]
    while files:
        handler = make(rank, lr=1e3)
        savers = [fitkit.ModelCheckpoint(folder / "{global_step}.pth", save_freq=1)]
        first = len(weights) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stream is read again
            options = {"split": split, "gradient_accumulation_steps": 2, "epochs": 3}
            fit(handler, data, callbacks=savers if first else [], resume=files.pop(), **options)
        weights.append([p.item().hex() for p in handler.module.parameters()])
        if first:
            handler.world.gather_all(None)  # all files are there
            files = sorted(folder.glob("*.pth"))
    return weights


def alone(path: Path) -> None:
    """Resume on one rank what two have begun, inside an epoch."""
    try:
        fit(make(0), (X, Y), epochs=3, resume=path)
    except Exception as error:  # noqa: BLE001  this is what is looked at
        sys.exit(f"{type(error).__name__}: {error}")


def tried(case: object) -> dict[str, object]:
    """What a case returned or raised."""
    began = time.monotonic()
    found: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found["found"] = case()
        except Exception as error:  # noqa: BLE001  this is what is looked at
            found |= {"type": type(error).__name__, "text": str(error)}
    found["warnings"] = [str(one.message) for one in caught]
    found["seconds"] = time.monotonic() - began
    return found


def main() -> None:
    """All cases; after an error the group of ranks goes on."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    world = make(0).world
    cases = {f"differs: {n}": c for n, c in differences(world.rank).items()}
    cases |= {f"works: {n}": c for n, c in allowed(world.rank, world.size).items()}
    for kind in ("arrays", "loader", "stream", "undeclared stream"):
        cases[f"resumed {kind}"] = lambda kind=kind: resumed(world.rank, kind)
    cases["no stream for a rank"] = lambda: fit(make(world.rank), Empty(world.rank), split="rank")
    found = {name: tried(case) for name, case in cases.items()}
    (OUT / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main() if len(sys.argv) < 3 else alone(OUT / sys.argv[2])
