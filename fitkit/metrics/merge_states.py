"""Merges what metrics that accumulate by themselves have accumulated on several ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.core.tree import map_tensors

# torchmetrics' reductions whose result can be merged once more; means, for instance, cannot
_ASSOCIATIVE = {"dim_zero_sum", "dim_zero_cat", "dim_zero_max", "dim_zero_min"}


def is_torchmetrics(metric: Any) -> bool:
    """Whether ``metric`` is a metric, a collection or a wrapper of torchmetrics."""
    return isinstance(metric, nn.Module) and callable(getattr(metric, "persistent", None))


def require_mergeable(name: str, metric: Any) -> None:
    """Raise ``ConfigurationError`` if a metric cannot be computed over the samples of all ranks."""
    if not _can_merge(metric):
        raise ConfigurationError(
            f"metric {name!r} ({type(metric).__name__}) accumulates by itself, so each rank would "
            f"compute another value: use a fitkit.Metric or a fitkit.EpochMetric, or give it "
            f"merge_state(others), which adds what the same metric has accumulated on other ranks."
        )


def require_mergeable_again(name: str, metric: Any, number: int) -> None:
    """Raise ``CheckpointError`` if merged states of ``number`` ranks cannot be merged once more."""
    kinds = {
        getattr(reduction, "__name__", None)
        for _, part in _parts(metric)
        for reduction in part._reductions.values()  # noqa: SLF001 - it has no public form
    }
    if not _can_merge(metric) or not kinds <= _ASSOCIATIVE:
        raise CheckpointError(
            f"metric {name!r} accumulates by itself, so the states of several ranks cannot be "
            f"merged for another number of ranks: resume on {number} ranks, or from a checkpoint "
            f"at the end of an epoch."
        )


def stop_own_sync(metric: Any) -> None:
    """Keep torchmetrics from gathering states in ``compute``, for which all ranks would wait."""
    for _, part in _parts(metric):
        part.sync_on_compute = part._to_sync = False  # noqa: SLF001 - compute reads it


def accumulated(metric: Any) -> dict[str, Any]:
    """The live states of a metric of torchmetrics, without the weights of its modules."""
    return {
        f"{path}.{name}": getattr(part, name)
        for path, part in _parts(metric)
        for name in part._reductions  # noqa: SLF001
    }


def set_accumulated(metric: Any, states: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Give a metric of torchmetrics the merged ``states`` of several ranks, in their order."""
    for path, part in _parts(metric):
        for name, reduction in part._reductions.items():  # noqa: SLF001
            merged = _merged([state[f"{path}.{name}"] for state in states], reduction)
            if not (isinstance(merged, list) and part.compute_on_cpu):
                merged = map_tensors(lambda tensor: tensor.to(device), merged)
            setattr(part, name, merged)


def merge_into(metric: Any, others: Sequence[Any], device: torch.device) -> None:
    """Add to ``metric`` what ``others``, copies of it, have accumulated."""
    if is_torchmetrics(metric):
        set_accumulated(metric, [accumulated(one) for one in (metric, *others)], device)
    elif others:
        metric.merge_state(list(others))


def _can_merge(metric: Any) -> bool:
    return is_torchmetrics(metric) or callable(getattr(metric, "merge_state", None))


def _parts(metric: Any) -> Iterator[tuple[str, Any]]:
    if is_torchmetrics(metric):
        for path, part in metric.named_modules():
            if hasattr(part, "_reductions"):
                yield path, part


def _merged(values: list[Any], reduction: Any) -> Any:
    """One state of several ranks, merged as torchmetrics does it."""
    if len(values) == 1:  # torchmetrics does not reduce the state of a single rank either
        return values[0]
    is_concatenated = getattr(reduction, "__name__", None) == "dim_zero_cat"
    if any(isinstance(value, list) for value in values):
        items = [one for v in values for one in (v if isinstance(v, list) else [v])]
        return items if reduction is None or is_concatenated or not items else reduction(items)
    if is_concatenated:
        return torch.cat(values)
    stacked: Tensor = torch.stack(values)
    return stacked if reduction is None else reduction(stacked)
