"""Find the largest batch size that fits into memory, by trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate

from fitkit.core.argument_checks import require_count
from fitkit.core.errors import ConfigurationError, DataError, add_note, describe
from fitkit.data.in_memory import common_length, is_in_memory
from fitkit.data.seeded_fetch import require_length
from fitkit.data.spec import DataSpec, is_batched_by_fitkit
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.out_of_memory import free_memory, is_out_of_memory
from fitkit.training.build_run import training_specs
from fitkit.training.options import FitOptions
from fitkit.tuning.trial import run_trial, trial, trial_options


def find_batch_size(
    handler: BaseHandler,
    train_data: Any,
    start: int,
    max_size: int | None,
    num_steps: int,
    options: Mapping[str, Any],
) -> int:
    """Double the size until memory runs out, then bisect; see ``NNHandler.find_batch_size``."""
    require_count("start", start)
    require_count("max_size", max_size, optional=True)
    require_count("num_steps", num_steps)
    if handler.world.size > 1:
        raise ConfigurationError(
            "find_batch_size runs in one process, because a rank that is out of memory cannot take "
            "part in collectives: run it in one process, and use the size it finds on each rank."
        )
    handler.parts.require_trainable()
    fit_options = trial_options(options, epochs=num_steps, steps_per_epoch=1)
    given, _ = training_specs(handler, replace(fit_options, train_data=train_data))
    data = _without_batches(given)
    limit = _largest_size(data, max_size)
    free_memory()
    with trial(handler, data, "find_batch_size"):
        return largest(
            lambda size: _attempt(handler, fit_options, data, size), min(start, limit), limit
        )


def largest(attempt: Callable[[int], BaseException | None], start: int, limit: int) -> int:
    """The largest size up to ``limit`` for which ``attempt`` returns no error.

    Raises:
        BaseException: the error of size 1.

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
            del error  # its traceback holds tensors
        double = max(fits * 2, start)
        size = min(double, limit) if too_large > limit else (fits + too_large) // 2
    return fits


def _attempt(
    handler: BaseHandler, options: FitOptions, data: DataSpec, size: int
) -> BaseException | None:
    handler.parts.train_data = replace(data, batch_size=size)
    try:
        run_trial(handler, options)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        handler.logger.info("find_batch_size: %d samples are too many", size)
        # its traceback holds tensors, and only the error of size 1 is raised
        found = error if size == 1 else error.with_traceback(None)
    else:
        handler.logger.info("find_batch_size: %d samples fit", size)
        return None
    free_memory()
    return found


def _without_batches(spec: DataSpec) -> DataSpec:
    """The same samples, to be batched in any size; workers are left out, as they need no memory."""
    data, kwargs = spec.data, dict(spec.loader_kwargs)
    if isinstance(data, DataLoader):
        kwargs = {} if data.collate_fn is default_collate else {"collate_fn": data.collate_fn}
        data = data.dataset
    if not is_batched_by_fitkit(data):
        raise DataError(
            f"find_batch_size needs arrays, a Dataset or a DataLoader over one, received "
            f"{describe(data)}, which brings its own batches: pass the Dataset."
        )
    collate = {"collate_fn": kwargs["collate_fn"]} if "collate_fn" in kwargs else {}
    return DataSpec(data, loader_kwargs=collate)


def _largest_size(spec: DataSpec, max_size: int | None) -> int:
    if isinstance(spec.data, IterableDataset):
        if max_size is None:
            raise ConfigurationError(
                "an IterableDataset does not say how many samples there are: pass max_size=."
            )
        return max_size
    length = common_length(spec.data) if is_in_memory(spec.data) else require_length(spec.data)
    if not length:
        raise DataError("the training data holds no sample: pass at least one.")
    return length if max_size is None else min(length, max_size)
