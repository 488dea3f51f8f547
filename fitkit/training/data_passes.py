"""The passes over training and validation data of a call of ``fit``."""

from __future__ import annotations

from collections.abc import Mapping

from fitkit.core.errors import ConfigurationError
from fitkit.data.spec import DataSpec, require_rereadable
from fitkit.engine.run import DataPass
from fitkit.handler.base_handler import BaseHandler
from fitkit.training.build_evaluation import make_data_pass
from fitkit.training.options import FitOptions


def make_data_passes(
    handler: BaseHandler, options: FitOptions, train: DataSpec, sets: Mapping[str, DataSpec]
) -> tuple[DataPass, dict[str, DataPass]]:
    """The pass over the training data, and those over the validation sets by name."""
    limits = (options.steps_per_epoch, options.validation_steps)
    if options.overfit_batches is None:
        train_pass = make_data_pass(handler, train, training=True, limit=limits[0])
        return train_pass, {
            name: make_data_pass(handler, spec, limit=limits[1]) for name, spec in sets.items()
        }
    require_rereadable(train, "overfit_batches")
    # it trains, and validates each set, on the first batches of the training data
    train_pass = make_data_pass(handler, train, in_order=True)
    passes = {name: make_data_pass(handler, train, in_order=True) for name in sets}
    overfit_limit = _num_overfit_batches(options.overfit_batches, train_pass.num_batches)
    for data_pass in (train_pass, *passes.values()):
        limit = limits[0] if data_pass is train_pass else limits[1]
        data_pass.limit = overfit_limit if limit is None else min(overfit_limit, limit)
    return train_pass, passes


def _num_overfit_batches(overfit_batches: int | float, num_batches: int | None) -> int:
    if isinstance(overfit_batches, int):
        return overfit_batches
    if num_batches is None:
        raise ConfigurationError(
            f"overfit_batches={overfit_batches} is a share of the batches, but the data does not "
            f"say how many there are: pass their number as an int."
        )
    return max(round(overfit_batches * num_batches), 1)
