"""Checks when a metric is added that a checkpoint can hold what it accumulates."""

from __future__ import annotations

from typing import Any

from fitkit.checkpointing.format.encoding import encode
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.metrics.metric import Metric
from fitkit.metrics.metric_state import attributes_of, saves_itself
from fitkit.metrics.stateful import accumulates


def require_savable_metric(name: str, metric: Any) -> None:
    """Raise ``ConfigurationError`` if a metric accumulates in attributes that cannot be saved."""
    if not accumulates(metric) or isinstance(metric, Metric) or saves_itself(metric):
        return
    try:
        for attribute, value in attributes_of(metric).items():
            encode(value, f"attribute {attribute!r}")
    except CheckpointError as error:
        raise ConfigurationError(
            f"metric {name!r} could not be saved in the middle of an epoch: {error} Or give "
            f"{type(metric).__name__} state_dict and load_state_dict."
        ) from error
