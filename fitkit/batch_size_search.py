"""The largest batch that fits into memory, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from fitkit.assembly import training_specs
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError, DataError, add_note
from fitkit.data.batches import describe
from fitkit.data.fetching import is_map_style, require_length
from fitkit.data.in_memory import common_length, is_in_memory
from fitkit.data.spec import DataSpec
from fitkit.options import FitOptions
from fitkit.runtime.memory import free_memory, is_out_of_memory
from fitkit.trial import run_trial, trial, trial_options

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler


def search_batch_size(
    handler: NNHandler,
    train_data: Any,
    start: int,
    max_size: int | None,
    num_steps: int,
    options: Mapping[str, Any],
) -> int:
    """Double the size until memory runs out, then bisect; ``NNHandler.find_batch_size`` tells.

    Args:
        handler: whose model is tried, and is as it was afterwards.
        train_data: as in ``fit``; its batches must be made here.
        start: the first size.
        max_size: the largest, or ``None``: all samples.
        num_steps: batches that a size has to train.
        options: further arguments of ``fit``.
    """
    require_count("start", start)
    require_count("max_size", max_size, optional=True)
    require_count("num_steps", num_steps)
    if handler.world.size > 1:
        raise ConfigurationError(
            "find_batch_size runs in one process: a process that is out of memory could not take "
            "part in what the others do. The size it finds is that of each process."
        )
    handler.parts.require_trainable()
    settings = {"epochs": num_steps, "steps_per_epoch": 1}
    fit_options = trial_options(options, **settings)
    given = replace(fit_options, train_data=train_data)
    data = _batched_here(training_specs(handler, given)[0])
    limit = _limit(data, max_size)
    free_memory()
    with trial(handler, data, "find_batch_size"):
        return largest(
            lambda size: _attempt(handler, fit_options, data, size), min(start, limit), limit
        )


def largest(attempt: Callable[[int], BaseException | None], start: int, limit: int) -> int:
    """The largest size up to ``limit`` at which nothing goes wrong, if larger is never easier.

    Args:
        attempt: tries a size; what it ended with, or ``None`` if all went well.
        start: the first size to try.
        limit: the last one.

    Raises:
        BaseException: what a size of 1 ended with.

    >>> largest(lambda size: MemoryError() if size > 37 else None, start=2, limit=1000)
    37
    """
    fits, too_large, size = 0, limit + 1, start
    while too_large - fits > 1:
        error = attempt(size)
        if error is None:
            fits = size
        else:
            too_large = size
            if size == 1:
                add_note(error, "raised with a batch of one sample")
                raise error
            del error  # it holds what was in memory
        double = max(fits * 2, start)
        size = min(double, limit) if too_large > limit else (fits + too_large) // 2
    return fits


def _attempt(
    handler: NNHandler, options: FitOptions, data: DataSpec, size: int
) -> BaseException | None:
    handler.parts.train_data = replace(data, batch_size=size)
    try:
        run_trial(handler, options)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        handler.logger.info("find_batch_size: %d samples are too many", size)
        told = error if size == 1 else error.with_traceback(None)  # which holds what was computed
    else:
        handler.logger.info("find_batch_size: %d samples fit", size)
        return None
    free_memory()
    return told


def _batched_here(spec: DataSpec) -> DataSpec:
    """The same samples in batches of any size; workers make no difference to memory."""
    data, kwargs = spec.data, dict(spec.loader_kwargs)
    if isinstance(data, DataLoader):
        kwargs = {} if data.collate_fn is default_collate else {"collate_fn": data.collate_fn}
        data = data.dataset
    kept = {"collate_fn": kwargs["collate_fn"]} if "collate_fn" in kwargs else {}
    if not (is_in_memory(data) or is_map_style(data) or isinstance(data, IterableDataset)):
        raise DataError(
            f"find_batch_size needs data whose batches are made here (arrays, a Dataset, a "
            f"DataLoader over one), received {describe(data)}, which brings its own batches."
        )
    return DataSpec(data, loader_kwargs=kept)


def _limit(spec: DataSpec, max_size: int | None) -> int:
    if isinstance(spec.data, IterableDataset):
        if max_size is None:
            raise ConfigurationError(
                "an IterableDataset does not say how many samples there are: pass max_size=."
            )
        return max_size
    own = common_length(spec.data) if is_in_memory(spec.data) else require_length(spec.data)
    if not own:
        raise DataError("the training data holds no sample.")
    return own if max_size is None else min(own, max_size)
