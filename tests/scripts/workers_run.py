"""A run whose DataLoader has workers, for tests that send signals to the whole process group.

Usage: workers_run.py KIND CONTEXT [PHASE]: the kind of data, how workers are started, and the phase
(train or test) in whose third batch "ready" is printed. It writes the final weights to "end.pth".
"""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fitkit

RANK = int(os.environ.get("RANK", "0"))


class Slow(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.03)
        return torch.full((4,), index / 40.0), index % 2


class Stuck(Slow):
    def __getitem__(self, index):
        if index == 25:
            time.sleep(1000)
        return super().__getitem__(index)


class Stream(IterableDataset):
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for index in range(worker.id, 40, worker.num_workers):
            yield Slow()[index]


class Wrapped:
    """An iterable that has its own loader, whose workers fitkit does not see."""

    def __init__(self, **options):
        self.options = options

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(DataLoader(Slow(), **self.options))


def note_worker(worker_id):
    with open("workers.txt", "a") as file:
        file.write(f"{worker_id}\n")


def make_data(kind, context):
    options = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": context}
    if kind == "iterable":
        return DataLoader(Stream(), worker_init_fn=note_worker, **options)
    if kind == "persistent":
        options |= {"persistent_workers": True, "worker_init_fn": note_worker}
        return DataLoader(Slow(), **options)
    if kind == "stateful":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Slow(), **options)
    if kind == "wrapped":
        return Wrapped(**options)
    return DataLoader(Stuck() if kind == "stuck" else Slow(), **options)


class Ready(fitkit.Callback):
    def __init__(self, phase):
        self.phase = phase

    def tell(self, phase, batch):
        if (phase, batch) == (self.phase, 2) and RANK == 0:
            print("ready", flush=True)

    def on_train_batch_end(self, batch, logs):
        self.tell("train", batch)

    def on_test_batch_end(self, batch, logs):
        self.tell("test", batch)


def main(kind, context, phase="train"):
    handler = fitkit.NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=2)
    handler.set_optimizer(torch.optim.Adam, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    data = make_data(kind, context)
    own_function = getattr(data, "worker_init_fn", None)
    validation = make_data(kind, context) if phase == "test" else None
    limit = {"steps_per_epoch": 4} if kind == "stuck" else {}
    handler.fit(
        data,
        validation_data=validation,
        epochs=2,
        callbacks=[fitkit.ModelCheckpoint("run/last.pth"), Ready(phase)],
        resume="run",
        progress_bar=False,
        preemption_signals=(signal.SIGTERM, signal.SIGUSR1),
        **limit,
    )
    assert getattr(data, "worker_init_fn", None) is own_function
    if RANK == 0:
        torch.save(handler.module.state_dict(), "end.pth")


if __name__ == "__main__":
    main(*sys.argv[1:])
