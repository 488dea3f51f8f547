"""A run of four epochs that appends to log.csv and saves every four batches, two epochs."""

import argparse
import os
import resource
import signal

import torch
from torch import nn

import fitkit


class Strike(fitkit.Callback):
    """Kills the process when the row of an epoch is written and its checkpoint is not."""

    order = 200

    def __init__(self, options):
        self.options = options

    def on_epoch_begin(self, epoch, logs):
        if epoch == self.options.move_at:
            os.rename("log.csv", "moved.csv")

    def on_epoch_end(self, epoch, logs):
        if epoch == self.options.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    for name in ("--kill-after", "--move-at", "--limit"):
        parser.add_argument(name, type=int)
    parser.add_argument("--on-error", default="raise")
    parser.add_argument("--no-checkpoints", action="store_true")
    options = parser.parse_args()
    if options.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.limit, resource.RLIM_INFINITY))
    handler = fitkit.NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=2)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    data = (torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 2)
    logger = fitkit.CSVLogger("log.csv", append=True, on_error=options.on_error)
    saver = fitkit.ModelCheckpoint("run/{epoch}.pth", save_freq=4)
    handler.fit(
        data,
        validation_data=data,
        batch_size=4,
        epochs=4,
        callbacks=[logger, Strike(options), *([] if options.no_checkpoints else [saver])],
        resume="run",
        progress_bar=False,
    )


if __name__ == "__main__":
    main()
