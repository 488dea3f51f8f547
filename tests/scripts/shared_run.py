"""One script for one process and for many: what the distributed tests start.

    python tests/scripts/shared_run.py OUT
    torchrun --standalone --nproc-per-node=2 tests/scripts/shared_run.py OUT

Every process leaves ``OUT/rank<r>.pth`` with what it knows at the end, or ``OUT/error<r>.json``
with what it raised. ``--cases FILE`` runs several of them, one after the other: the file maps names
to arguments, and each case has the folder ``OUT/<name>``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

import fitkit
from fitkit import EarlyStopping, ModelCheckpoint, NNHandler
from fitkit.distributed.on_rank import on_rank


class Samples(Dataset):
    """Samples that are made when asked for, with augmentation."""

    def __init__(self, count: int, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 6, generator=generator, dtype=torch.float64).to(dtype)
        self.y = (self.x[:, :2].sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = random.random() + float(torch.rand(()))
        return self.x[index] + 0.01 * noise, self.y[index]


class Stream:
    """Batches of a length that nobody knows."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.samples, self.size = samples, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.samples.x, self.samples.y
        for i in range(0, len(x), self.size):
            chosen = x[i : i + self.size]
            noise = [float(torch.rand(())) for _ in chosen]  # one draw for each sample
            yield chosen + 0.01 * chosen.new_tensor(noise)[:, None], y[i : i + self.size]


class Noise(nn.Module):
    """Draws from the global generator in training and in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """Add noise."""
        return x + 0.1 * torch.randn_like(x)


class Block(nn.Module):
    """One of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Add to what comes in."""
        return x + self.outer(self.inner(x).tanh())


class Blocks(nn.Module):
    """A list of blocks between two layers that share their weights; one layer takes no part."""

    def __init__(self, *, leaves_out: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.head = nn.Linear(6, 2)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.left_out = nn.Linear(6, 2) if leaves_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Through the blocks."""
        x = self.frozen(self.first(x).tanh())
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).tanh())


class Buckets(nn.Module):
    """Embeds each feature by its bucket; gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 2, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        """The sum over the features."""
        return self.embedding((2 * x + 6).long().clamp(0, 11)).sum(1)


class PoisonedLoss(nn.CrossEntropyLoss):
    """Is not a number while it is told so."""

    poisoned = False

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy."""
        loss = super().forward(outputs, targets)
        return loss * float("nan") if self.poisoned else loss


class LearnedLoss(nn.Module):
    """A cross entropy with a learned temperature, and a running mean if ``is_normed``."""

    def __init__(self, *, is_normed: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.ones((), dtype=torch.float64) if is_normed else None)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, divided by its running mean."""
        loss = nn.functional.cross_entropy(outputs * self.temperature.exp(), targets)
        if self.mean is None:
            return loss
        if self.training:
            self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
        return loss / self.mean


class Records(fitkit.Callback):
    """What callbacks were told, and what their process draws."""

    order = 500
    batch_logs_interval = 0
    state_fields = ("logs", "steps", "drawn")

    def __init__(self, out: Path) -> None:
        self.logs: list[dict[str, float]] = []
        self.steps: list[int] = []
        self.drawn = 0.0
        self.times: list[float] = []
        self.out = out

    def on_train_batch_end(self, batch: int, logs: fitkit.Logs) -> None:
        """Draw, and let others see how far the run is."""
        self.drawn += random.random()
        self.times.append(time.time())
        state = self.handler.state
        (self.out / f"step{self.handler.world.rank}").write_text(str(state.global_step))

    def on_epoch_end(self, epoch: int, logs: fitkit.Logs) -> None:
        """Keep the logs."""
        self.logs = [*self.logs, dict(logs)]
        self.steps = [*self.steps, self.handler.state.global_step]


class Strikes(fitkit.Callback):
    """Something happens to one rank at one step."""

    order = -50

    def __init__(self, what: str, rank: int, step: int, out: Path) -> None:
        self.what, self.rank, self.step, self.out = what, rank, step, out

    def on_train_batch_begin(self, batch: int, logs: fitkit.Logs) -> None:
        """What has to happen before the step."""
        state = self.handler.state
        if self.what == "full-disk" and self.handler.world.rank == self.rank:
            is_full = self.step <= state.global_step + 1 < self.step + 3
            limit_files(300 if is_full else resource.RLIM_INFINITY)
            (self.out / "struck").touch()
        if self.what == "nan" and self.handler.world.rank == self.rank:
            self.handler.parts.loss.function.poisoned = state.global_step + 1 == self.step

    def on_train_batch_end(self, batch: int, logs: fitkit.Logs) -> None:
        """Strike, once in the life of the folder."""
        state, mark = self.handler.state, self.out / "struck"
        if state.global_step < self.step or self.handler.world.rank != self.rank or mark.exists():
            return
        mark.write_text(repr(time.time()))
        if self.what == "raise":
            raise ValueError("boom on purpose")
        if self.what == "stop":
            state.stop("enough on purpose")
        if self.what in ("SIGKILL", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, self.what))

    def on_train_end(self, logs: fitkit.Logs) -> None:
        """Strike when all is done."""
        if self.what == "raise-at-end" and self.handler.world.rank == self.rank:
            (self.out / "struck").write_text(repr(time.time()))
            raise ValueError("boom on purpose")


def limit_files(num_bytes: int) -> None:
    """A disk is full for whoever writes more than this to one file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


class Contributes(fitkit.Callback):
    """Logs a value that differs between processes."""

    def on_train_batch_end(self, batch: int, logs: fitkit.Logs) -> None:
        """Log it."""
        self.log("mine", float(self.handler.world.rank))


class SavesByHand(fitkit.Callback):
    """Code that calls ``handler.save``: on one process between epochs, on all of them inside."""

    def __init__(self, out: Path, where: str) -> None:
        self.out, self.where = out, where

    def on_test_batch_end(self, batch: int, logs: fitkit.Logs) -> None:
        """In validation."""
        if self.where == "validation" and self.handler.session.run is not None:
            state = self.handler.state
            name = f"{state.global_step:03d}_{batch}{state.evaluation_set}.pth"
            self.handler.save(self.out / "steps" / name)

    def on_epoch_end(self, epoch: int, logs: fitkit.Logs) -> None:
        """Between epochs."""
        if self.where == "epoch" and self.handler.world.is_main:
            self.handler.get_state_dict()
            self.handler.save(self.out / f"alone_{epoch}.pth")

    def on_train_begin(self, logs: fitkit.Logs) -> None:
        """After a resume, before anything else happens."""
        if self.where == "begin":
            self.handler.save(self.out / "begun.pth")


def data_of(options: argparse.Namespace, count: int, seed: int, *, shuffle: bool) -> object:
    """The data in the form that is asked for."""
    dtype = getattr(torch, options.dtype)
    samples = Samples(count, dtype, seed)
    ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    size = options.batch // ranks
    if options.data == "arrays":
        return TensorDataset(samples.x, samples.y)
    if options.data == "dataset":
        return samples
    if options.data == "loader":
        return DataLoader(samples, batch_size=size, shuffle=shuffle, num_workers=options.workers)
    if options.data == "sampler":  # each process takes whole batches
        batches = [list(batch) for batch in BatchSampler(SequentialSampler(samples), size, False)]
        return DataLoader(samples, batch_sampler=batches, num_workers=options.workers)
    if options.data == "stream":
        return Stream(samples, size)
    return [(samples.x[i : i + size], samples.y[i : i + size]) for i in range(0, count, size)]


STRATEGIES = {
    "ddp-unused": fitkit.DDP(find_unused_parameters=True),
    "fsdp-blocks": fitkit.FSDP(blocks=(Block, nn.Tanh)),
    "fsdp-copies": fitkit.FSDP(device_mesh=(2, 1)),
    "fsdp-hybrid": fitkit.FSDP(device_mesh=(2, 2)),
    "fsdp-bf16": fitkit.FSDP(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}


def make_model(options: argparse.Namespace) -> nn.Module:
    """A small classifier."""
    if options.model == "blocks":
        return Blocks()
    if options.model == "leaves-out":
        return Blocks(leaves_out=True)
    if options.model == "sparse":
        return Buckets()
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)]
    if options.dropout:
        layers.insert(2, nn.Dropout(0.3))
    if options.noise:
        layers.insert(0, Noise())
    if options.norm:
        layers.insert(1, nn.BatchNorm1d(8))
    return nn.Sequential(*layers)


def make_handler(options: argparse.Namespace) -> NNHandler:
    """The model with its optimizer, new or from a file."""
    torch.manual_seed(options.seed)
    model = make_model(options).to(getattr(torch, options.dtype))
    strategy = STRATEGIES.get(options.strategy, options.strategy)
    if options.load:
        handler = NNHandler.load(options.load, "cpu", model_class=model, strategy=strategy)
    elif options.weights_of:
        handler = NNHandler.initialize_from_checkpoint(
            options.weights_of, model, device="cpu", strategy=strategy
        )
    else:
        handler = NNHandler(model, device="cpu", seed=options.seed, strategy=strategy)
    loss = PoisonedLoss()
    if options.loss:
        loss = LearnedLoss(is_normed=options.loss == "normed")
        with torch.no_grad():  # ranks begin with the values of the first
            loss.temperature.fill_(0.1 * handler.world.rank)
    if options.model == "sparse":  # the others take no sparse gradients
        handler.set_optimizer(torch.optim.SGD, lr=0.5)
    elif not options.load:
        set_parts(handler, loss)
    handler.set_loss_fn(loss)
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.add_metric("mean_output", lambda outputs, targets: outputs.mean())
    handler.add_metric("in_order", fitkit.EpochMetric(in_order))
    if options.custom:
        handler.set_train_step(_custom_step, evaluation_step=_custom_step)
    return handler


def in_order(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Depends on the order of the samples of an epoch, and on none being there twice."""
    places = torch.arange(len(targets), dtype=torch.float64) / len(targets)
    return {"outputs": outputs.double().sum(1) @ places, "targets": targets.double() @ places}


def set_parts(handler: NNHandler, loss: nn.Module) -> None:
    """What a file tells of by itself."""
    handler.set_optimizer(
        torch.optim.AdamW, lr=0.05, params=lambda m: [*m.parameters(), *loss.parameters()]
    )
    handler.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=40, interval="step")


def _custom_step(handler: NNHandler, batch: tuple[Tensor, Tensor]) -> fitkit.StepOutput:
    outputs = handler.model(batch[0])
    loss = nn.functional.cross_entropy(outputs, batch[1])
    return fitkit.StepOutput(loss, outputs, batch[1], logs={"largest": outputs.max(1)[0].mean()})


def make_callbacks(options: argparse.Namespace, records: Records) -> list[fitkit.Callback]:
    """Everybody who listens."""
    out, own = options.out, options.out
    if options.own_folders:
        own = out / f"of_rank{os.environ.get('RANK', '0')}"
    stopping = EarlyStopping(patience=options.patience, restore_best_weights=options.restore_best)
    callbacks: list[fitkit.Callback] = [records, stopping]
    callbacks.append(fitkit.CSVLogger(own / "log.csv"))
    callbacks.append(fitkit.TerminateOnNaN())
    if options.save_freq:
        last = own / ("steps/{global_step:03d}.pth" if options.keep else "runs/last.pth")
        callbacks.append(
            ModelCheckpoint(
                last,
                save_freq=options.save_freq,
                background=options.background,
                on_error=options.on_error,
                max_to_keep=options.max_to_keep,
            )
        )
    if options.every_n_seconds:
        callbacks.append(
            ModelCheckpoint(
                own / "timed_{global_step}.pth", every_n_seconds=options.every_n_seconds
            )
        )
    if options.max_overhead:
        callbacks.append(
            ModelCheckpoint(own / "cheap_{global_step}.pth", max_overhead=options.max_overhead)
        )
    best = own / "runs" / "best.pth"
    callbacks.append(ModelCheckpoint(best, save_best_only=True, on_error=options.on_error))
    if options.weights_only:
        weights = own / "runs" / "weights.pth"
        callbacks.append(
            ModelCheckpoint(
                weights, save_weights_only=True, save_freq=3, background=options.background
            )
        )
    if options.save_by_hand:
        callbacks.append(SavesByHand(out, options.save_by_hand))
    if options.contribute:
        callbacks.append(Contributes())
    if options.delay:
        callbacks.append(
            fitkit.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(options.delay))
        )
    if options.strike:
        what, who, step = options.strike
        callbacks.append(Strikes(what, int(who), int(step), out))
    return callbacks


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path, help="names and arguments of several runs")
    parser.add_argument("--train", type=int, default=53)
    parser.add_argument("--val", type=int, default=21)
    parser.add_argument("--sets", action="store_true", help="a second set to validate on")
    parser.add_argument("--batch", type=int, default=8, help="over all processes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--data", default="arrays")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--loss", choices=["learned", "normed"], help="a loss module")
    parser.add_argument("--noise", action="store_true", help="drawn in evaluation too")
    parser.add_argument("--norm", action="store_true", help="batch normalisation")
    parser.add_argument("--custom", action="store_true", help="a custom training step")
    parser.add_argument("--ema", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--patience", type=int, default=50)
    parser.add_argument("--save-freq", type=int)
    parser.add_argument("--auto-save", action="store_true", help="after each epoch")
    parser.add_argument("--keep", action="store_true", help="a file for each of these saves")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--every-n-seconds", type=float)
    parser.add_argument("--max-overhead", type=float)
    parser.add_argument("--save-by-hand", choices=["epoch", "validation", "begin"])
    parser.add_argument("--own-folders", action="store_true", help="one for each process")
    parser.add_argument("--contribute", action="store_true", help="log the rank")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--resume-from", type=Path, help="a file")
    parser.add_argument("--again", action="store_true", help="go on when fit was interrupted")
    parser.add_argument("--save-after", action="store_true", help="save when fit has returned")
    parser.add_argument("--strike", nargs=3, help="what, rank, step")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per batch")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--model", default="layers")
    parser.add_argument("--precision")
    parser.add_argument("--restore-best", action="store_true", help="the best weights at the end")
    parser.add_argument("--weights-only", action="store_true", help="saved each third batch")
    parser.add_argument("--max-to-keep", type=int)
    parser.add_argument("--on-error", default="raise")
    parser.add_argument("--load", type=Path, help="NNHandler.load from this file")
    parser.add_argument("--weights-of", type=Path, help="initialize_from_checkpoint")
    parser.add_argument("--on-rank", action="store_true", help="try fitkit.on_rank, no training")
    parser.add_argument("--count", action="store_true", help="count the collectives of fit")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train, evaluate, predict, and write down what came of it."""
    handler = make_handler(options)
    rank, out = handler.world.rank, options.out
    train, val = (
        data_of(options, options.train, 0, shuffle=True),
        data_of(options, options.val, 1, shuffle=False),
    )
    is_whole = options.data in ("arrays", "dataset")
    sizes = {"global_batch_size": options.batch} if is_whole else {}
    if options.data == "dataset" and options.workers:
        sizes["num_workers"] = options.workers
    handler.set_train_loader(train, **sizes)
    handler.set_val_loader(val, **sizes)
    if options.sets:
        few = data_of(options, options.val // 2, 2, shuffle=False)
        handler.set_val_loader(few, name="few", **sizes)
    if options.auto_save:
        handler.auto_save(1, out / "auto", "auto", overwrite=True)
    records = Records(out)
    counted = _counted_collectives() if options.count else None
    fit = partial(
        handler.fit,
        epochs=options.epochs,
        callbacks=make_callbacks(options, records),
        gradient_accumulation_steps=options.accumulation,
        gradient_clipping_norm=options.clip,
        ema_decay=options.ema,
        precision=options.precision,
        resume=(out / "runs" if options.resume else None) or options.resume_from,
        progress_bar=False,
    )
    history = fit()
    if options.again and history.interrupted:
        (out / f"interrupted{rank}").touch()
        history = fit()
    collectives = None if counted is None else dict(counted)
    if options.save_after:
        handler.save(out / "after.pth")
    samples = Samples(options.val, getattr(torch, options.dtype), 1)
    shuffled = DataLoader(samples, batch_size=3, shuffle=True)
    found = {
        "history": history.history,
        "logs": records.logs,
        "steps": records.steps,
        "drawn": records.drawn,
        "weights": whole(handler.module.state_dict()),
        "loss": handler.parts.loss.function.state_dict(),
        "averaged_loss": handler.weights.loss_ema_state(),
        "averaged": None if handler.ema is None else whole(handler.ema.weights()),
        "evaluation": handler.evaluate(),
        "predictions": handler.predict(TensorDataset(samples.x), batch_size=4),
        "predictions_of_loader": handler.predict(shuffled),
        "predictions_of_batches": handler.predict(list(samples.x.split(5))),
        "step": handler.state.global_step,
        "samples": handler.state.samples_seen,
        "stop_reason": handler.state.stop_reason,
        "interrupted": history.interrupted,
        "collectives": collectives,
        "times": records.times,
    }
    torch.save(found, out / f"rank{rank}.pth")


def whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of which each process may have a part, put together."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in weights.items()
    }


def _counted_collectives() -> Counter[str]:
    """Counts each call of ``torch.distributed`` that has to reach every process, from now on."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: object) -> object:
        def counted(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return function(*args, **kwargs)  # type: ignore[operator]

        return counted

    for name in COLLECTIVES:
        earlier = EARLIER_NAMES.get(name, name)
        called = name if hasattr(torch.distributed, name) else earlier
        setattr(torch.distributed, called, counting(name, getattr(torch.distributed, called)))
    return counts


COLLECTIVES = ("all_reduce", "broadcast", "gather_object", "all_gather", "barrier")
COLLECTIVES += ("scatter_object_list",)
COLLECTIVES += ("all_gather_single", "reduce_scatter_single")  # of parameters, of gradients
EARLIER_NAMES = {  # in torch 2.11
    "all_gather_single": "all_gather_into_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
}


def try_on_rank(options: argparse.Namespace) -> None:
    """What ``on_rank`` gives on each process, and how a failure gets around."""
    world = make_handler(options).world
    found: dict[str, object] = {}

    def act(value: int) -> tuple[int, int]:
        (options.out / f"acted{value}_{world.rank}").touch()
        if value > 9:
            raise ZeroDivisionError(f"{value} is too much")
        return world.rank, value

    last = world.size - 1
    decorated = {
        "waits": on_rank(0, barrier=True),
        "goes on": on_rank(0),
        "last": on_rank(last, barrier=True),
    }
    for number, (name, decorate) in enumerate(decorated.items()):
        found[name] = decorate(act)(number)
    for name, who in (("fails", 0), ("fails on the last", last)):
        try:
            on_rank(who, barrier=True)(act)(10 + who)
        except Exception as error:  # noqa: BLE001  this is what is looked at
            found[name] = (type(error).__name__, str(error))
    found["and after"] = world.gather_all(world.rank)
    torch.save(found, options.out / f"rank{world.rank}.pth")


def run_one(options: argparse.Namespace) -> None:
    """One case; what it raises is written down."""
    options.out.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    (options.out / f"pid{rank}").write_text(str(os.getpid()))
    try:
        try_on_rank(options) if options.on_rank else run(options)
    except BaseException as error:
        limit_files(resource.RLIM_INFINITY)
        message = {"type": type(error).__name__, "text": str(error), "time": time.time()}
        (options.out / f"error{rank}.json").write_text(json.dumps(message))
        raise


def main() -> None:
    """Run what is asked for."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # for those who wait for its end
    options = parsed()
    if options.cases is None:
        run_one(options)
        return
    for name, arguments in json.loads(options.cases.read_text()).items():
        run_one(parsed([str(options.out / name), *arguments]))


if __name__ == "__main__":
    sys.exit(main())
