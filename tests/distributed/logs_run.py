"""What every hook of every callback hears, written to a file; ``test_logs.py`` starts it.

``logs_run.py OUT`` leaves ``OUT/one.json`` on one process, ``OUT/rank<r>.json`` on several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

import fitkit
from fitkit import Callback, CallbackList, Event, NNHandler
from fitkit.core.callback import BuiltinCallback

IGNORED = -100
X = torch.randn(19, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
Y[2:6] = IGNORED  # so ranks have different numbers of labels in the first batch
# of 19 samples in batches of 6 the last one is 1, so that one rank has none
DATA, GLOBAL_BATCH = torch.utils.data.TensorDataset(X, Y), 6


class Outputs(fitkit.Metric):
    """The share of positive outputs, as two sums."""

    def update(self, outputs, targets):
        return (outputs > 0).sum(), outputs.numel()

    def compute(self, sums):
        return sums[0] / sums[1]


class OfTracker:
    """Stands in for a tracker, whose package would take seconds."""

    def open_run(self, run_id):
        return run_id or "run"

    def write_parameters(self, parameters):
        pass

    def write_rows(self, rows):
        self.rows = [*getattr(self, "rows", []), *rows]

    def close_run(self, status):
        pass


class MLflow(OfTracker, fitkit.MLflowLogger):
    """Writes nowhere."""


class Wandb(OfTracker, fitkit.WandbLogger):
    """Writes nowhere."""


class TensorBoard(OfTracker, fitkit.TensorBoardLogger):
    """Writes nowhere."""


def built_in(out: Path) -> list[Callback]:
    """One of each built-in callback, and those with other arguments that change what they read."""
    return [
        fitkit.AutoSaver(1, out / "auto", "auto"),
        fitkit.CSVLogger(out / "log.csv"),
        fitkit.ConsoleLogger(),
        fitkit.EMA(0.9),
        fitkit.EarlyStopping("of_on_epoch_end", mode="min", patience=3),
        fitkit.GradientAccumulationScheduler({0: 1, 1: 2}),
        fitkit.HTMLReport(out / "report.html"),
        fitkit.JSONLinesLogger(out / "log.jsonl"),
        fitkit.LambdaCallback(on_train_batch_end=lambda batch, logs: dict(logs)),
        fitkit.LearningRateMonitor(),
        fitkit.LearningRateScheduler(lambda epoch, lr: lr * 0.9),
        MLflow(every_n_batches=3),
        fitkit.ModelCheckpoint(out / "saves" / "{epoch}.pth"),
        fitkit.ModelCheckpoint(out / "best.pth", "loss", save_best_only=True, save_freq=2),
        fitkit.ModelCheckpoint(out / "named" / "{global_step}_{loss:.4f}.pth", save_freq=3),
        fitkit.PredictionWriter(out / "predictions.pth"),
        fitkit.Profiler(out / "trace.json", epoch=0, wait=0, warmup=0, active=1),
        fitkit.ProgressBar(),
        fitkit.ReduceLROnPlateau("of_on_epoch_end", mode="min", patience=1, factor=0.5),
        TensorBoard(every_n_batches=2),
        fitkit.TerminateOnNaN(),
        fitkit.ThroughputMonitor(),
        fitkit.Timer(3600.0),
        Wandb(every_n_batches=None),
        fitkit.History(),
    ]


def classes_of(callbacks: list[Callback]) -> set[str]:
    """The names of their classes and of the parents of these."""
    return {kind.__name__ for callback in callbacks for kind in type(callback).__mro__}


def exported() -> set[str]:
    """The names of all built-in callbacks that fitkit exports."""
    kinds = {name: getattr(fitkit, name) for name in fitkit.__all__}
    return {
        name
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BuiltinCallback)
    }


def logs_everywhere(rank: int, order: int) -> Callback:
    """Logs a value of its own rank in every hook."""

    def in_hook(callback, name):
        def hook(self, *args):
            if name != "on_exception":
                epoch = self.handler.state.epoch
                self.log(f"{callback}{name}", torch.tensor(float(1 + epoch + 10 * rank)))

        return hook

    prefix = f"of_{'' if order == 0 else f'{order}_'}"
    hooks = {event.value: in_hook(prefix, event.value) for event in Event}
    kind = type(f"Logs{order}", (Callback,), {**hooks, "order": order})
    return kind()


class Reads(Callback):
    """Comes after most others, reads everything and overrides each hook."""

    order = 70


for event in Event:
    setattr(Reads, event.value, lambda self, *args: None)


CALLS: list[list[object]] = []  # of hooks: event, callback, arguments, and all that could be read


def note_calls() -> None:
    """From now on note every call of a hook."""
    rebuild = CallbackList._rebuild

    def noting(event, callback, hook):
        def noted(*args):
            live = callback.handler.state.live_logs()
            CALLS.append(
                [event.value, type(callback).__name__, list(map(plain, args)), plain(live)]
            )
            hook(*args)

        return noted

    def rebuild_and_wrap(callbacks):
        rebuild(callbacks)
        callbacks._table = {
            event: tuple(
                (one, hook if one in callbacks._sharing else noting(event, one, hook))
                for one, hook in listeners
            )
            for event, listeners in callbacks._table.items()
        }

    CallbackList._rebuild = rebuild_and_wrap


def plain(value: object) -> object:
    """The bits of floats; what else there is as it is, or its class."""
    if isinstance(value, fitkit.Logs):
        return {name: value[name].hex() for name in value}
    return value if isinstance(value, (int, str)) else type(value).__name__


def make_handler(*, monitor: str | None = None) -> NNHandler:
    """A classifier with every kind of metric."""
    torch.manual_seed(0)
    handler = NNHandler(nn.Linear(3, 2), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.5)
    handler.set_loss_fn(nn.CrossEntropyLoss(ignore_index=IGNORED))
    if monitor is not None:
        kwargs = {"monitor": monitor, "patience": 0, "factor": 0.5}
        handler.set_scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau, **kwargs)
    handler.add_metric("accuracy", fitkit.Accuracy(ignore_index=IGNORED))
    handler.add_metric("outputs", Outputs())
    handler.add_metric("mean", lambda outputs, targets: outputs.mean())
    handler.set_val_loader(DATA, global_batch_size=GLOBAL_BATCH)
    return handler


def step(handler: NNHandler, batch: tuple[torch.Tensor, torch.Tensor]) -> fitkit.StepOutput:
    """Logs another name in the third batch, and skips the second one on rank 1."""
    outputs = handler.model(batch[0])
    loss = nn.functional.cross_entropy(outputs, batch[1], ignore_index=IGNORED)
    rank, index = handler.world.rank, handler.state.batch
    logs = {"late": torch.tensor(2.0 + rank)} if index >= 2 and rank else {}
    return None if index == 1 and rank else fitkit.StepOutput(loss, outputs, batch[1], logs=logs)


def listened(handler: NNHandler, callbacks: list[Callback], **options) -> list[list[object]]:
    """The calls of one fit."""
    CALLS.clear()
    handler.set_train_loader(DATA, global_batch_size=GLOBAL_BATCH, shuffle=False)
    handler.fit(epochs=4, callbacks=callbacks, progress_bar=False, **options)
    return list(CALLS)


def main(out: Path) -> None:
    """All of it."""
    note_calls()
    handler = make_handler(monitor="of_on_test_end")
    rank, size = handler.world.rank, handler.world.size
    own = out / ("one" if size == 1 else "two")
    logging = [logs_everywhere(rank, order) for order in (0, 90)]
    found = {
        "everything": listened(handler, [*built_in(own), *logging, Reads()]),
        "lr": handler.history.history["lr"],
        "weights": handler.module.weight.double().flatten().tolist(),
    }
    CALLS.clear()
    extra = [*logging, Reads(), fitkit.ProgressBar(), fitkit.PredictionWriter(own / "more.pth")]
    found["evaluate"] = [handler.evaluate(callbacks=extra), list(CALLS)]
    CALLS.clear()
    handler.predict(DATA, callbacks=extra)
    found["predict"] = list(CALLS)
    custom = make_handler()
    custom.set_train_step(step)
    found["custom step"] = listened(custom, [Reads()])
    quiet = make_handler()
    quiet.set_loss_fn(lambda outputs, targets: outputs.square().mean())  # a mean over samples
    counted = count_collectives()
    listened(quiet, [c for c in built_in(own / "quiet") if type(c) in PLAIN])
    found["collectives"] = dict(counted)
    found["only on rank 0"] = None
    if size > 1:
        alone = make_handler()
        calls = listened(alone, [Reads(), logs_everywhere(rank, 0)] if rank == 0 else [])
        calls = [call for call in calls if call[1] != "History"]
        found["only on rank 0"] = [len(calls), plain(alone.state.live_logs())]
    found["exported"] = [sorted(exported() - classes_of(built_in(own)))]
    (out / f"{'one' if size == 1 else f'rank{rank}'}.json").write_text(json.dumps(found))


PLAIN = (fitkit.ProgressBar, fitkit.TerminateOnNaN, fitkit.Timer, fitkit.ThroughputMonitor)


def count_collectives() -> dict[str, int]:
    """Counts calls of ``torch.distributed`` from now on."""
    counts: dict[str, int] = {}

    def counting(name, function):
        def counted(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return counted

    for name in ("all_reduce", "all_gather", "broadcast"):
        setattr(torch.distributed, name, counting(name, getattr(torch.distributed, name)))
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
