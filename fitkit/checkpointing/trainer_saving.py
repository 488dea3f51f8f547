"""auto_save_epoch: the automatic save of one epoch, for loops of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fitkit.checkpointing.autosaver import AutoSaver

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler


def auto_save_epoch(
    nn_handler: NNHandler,
    epoch: int,
    total_epochs: int,
    save_on_last_epoch: bool,
    logs: Mapping[str, float],
) -> None:
    """Save what ``handler.auto_save`` has asked for, if ``epoch`` is due.

    ``fit`` does this by itself; call it in a loop of your own.

    Args:
        nn_handler: the handler; without ``auto_save`` nothing happens.
        epoch: the epoch that has ended, from 0.
        total_epochs: epochs of this run.
        save_on_last_epoch: save the last epoch whatever the interval.
        logs: values for the file name; not changed.

    Raises:
        SaveError: the file could not be written.
    """
    for callback in nn_handler.callbacks:
        if isinstance(callback, AutoSaver):
            callback.handler = nn_handler
            callback.last_step = -1  # a loop of one's own need not count steps
            is_last = epoch + 1 >= total_epochs and (
                save_on_last_epoch or callback.save_interval == -1
            )
            callback.save_if_due(epoch, is_last=is_last, logs=logs)
    nn_handler.saves.meet()
    nn_handler.saves.settle()
