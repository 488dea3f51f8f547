"""``auto_save_epoch``: the automatic save after an epoch, for your own training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.core.handler import Handler


class SavingHandler(Handler, Protocol):
    """A handler with a save queue."""

    saves: SaveQueue


def auto_save_epoch(
    nn_handler: SavingHandler,
    epoch: int,
    total_epochs: int,
    save_on_last_epoch: bool,
    logs: Mapping[str, float],
) -> None:
    """Save as ``handler.auto_save`` was configured, if ``epoch`` is due.

    ``fit`` does this by itself; call it in your own training loop.

    Args:
        nn_handler: the handler; without ``auto_save`` nothing happens.
        epoch: the epoch that has ended, from 0.
        total_epochs: epochs of this run.
        save_on_last_epoch: save after the last epoch whatever the interval.
        logs: values for the file name; not changed.

    Raises:
        SaveError: the file could not be written.
    """
    for callback in nn_handler.callbacks:
        if isinstance(callback, AutoSaver):
            callback.handler = nn_handler
            callback.last_step = -1  # your own loop need not count steps
            is_last = epoch + 1 >= total_epochs and (
                save_on_last_epoch or callback.save_interval == -1
            )
            callback.save_if_due(epoch, is_last=is_last, logs=logs)
    nn_handler.saves.sync_point()
    nn_handler.saves.flush()
