"""start_iterator: begins a pass over batches; its workers leave signals to their parent."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_dataloader

from fitkit.data.quick_collate import quicker
from fitkit.runtime.optimizer_step import is_profiled
from fitkit.runtime.signals import leave_to_parent, signals_blocked, watched_signals

if sys.version_info < (3, 12) and hasattr(os, "register_at_fork"):
    # A worker waits for ever if at its fork another thread, such as one of gloo that has just ended
    # a collective, holds the lock of Python's list of threads (python/cpython#112275, also in early
    # patch releases of 3.10 and 3.11). Reading the list waits until the lock is free.
    os.register_at_fork(before=sys._current_frames)  # noqa: SLF001  no public form


def start_iterator(batches: Iterable[Any]) -> Iterator[Any]:
    """``iter(batches)``, without torch's label for each batch where nobody would see it.

    While ``fit`` watches signals, the workers that a DataLoader starts live on when a signal is
    sent to the whole process group, until ``fit`` has finished its batch and saved.
    """
    if not isinstance(batches, DataLoader) or not batches.num_workers:
        iterator = iter(batches)
        return _WithoutLabel(iterator) if type(iterator) is _OF_ONE_PROCESS else iterator
    signals = watched_signals()
    if not signals:
        return iter(batches)
    context: Any = batches.multiprocessing_context or multiprocessing
    # a fork server that starts now would hold them back in all its later processes
    is_served = context.get_start_method() == "forkserver"
    with nullcontext() if is_served else signals_blocked(signals), _initialized(batches, signals):
        return iter(batches)


# private, so that a release may lack it
_OF_ONE_PROCESS: Any = getattr(torch_dataloader, "_SingleProcessDataLoaderIter", None)


class _WithoutLabel:
    """What a DataLoader without workers yields; the label for the profiler costs a tenth of it."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        fetcher = iterator._dataset_fetcher  # noqa: SLF001
        fetcher.collate_fn = quicker(fetcher.collate_fn)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        iterator = self._iterator
        # torch warns in __next__ if there are more samples than the data set has said
        if iterator._IterableDataset_len_called is not None or is_profiled():  # noqa: SLF001
            return next(iterator)
        return iterator._next_data()  # noqa: SLF001


@contextmanager
def _initialized(loader: DataLoader[Any], signals: Sequence[int]) -> Iterator[None]:
    """Inside ``with`` the loader's workers begin with a ``WorkerStart``."""
    own = loader.worker_init_fn
    loader.worker_init_fn = WorkerStart(signals, own)
    try:
        yield
    finally:
        loader.worker_init_fn = own


class WorkerStart:
    """The ``worker_init_fn`` of workers that leave ``signals`` to their parent.

    Args:
        signals: their numbers.
        own: the ``worker_init_fn`` of the loader, called afterwards.
    """

    def __init__(self, signals: Sequence[int], own: Callable[[int], None] | None) -> None:
        self._signals = signals
        self._own = own

    def __call__(self, worker_id: int) -> None:
        """Begin the worker."""
        leave_to_parent(self._signals)
        if self._own is not None:
            self._own(worker_id)
