"""DataSpec: data as the user gave it; and splitting validation data off it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from fitkit.core.errors import ConfigurationError
from fitkit.data.batches import describe
from fitkit.data.fetching import is_map_style, require_length
from fitkit.data.in_memory import common_length, is_in_memory, take, tensors_of


@dataclass(frozen=True)
class DataSpec:
    """Data as the user gave it, with how it is to be read.

    Attributes:
        data: arrays, a data set, a loader, or an iterable of batches.
        batch_size: samples per batch and process; ``None``: 32 where fitkit makes the batches.
        shuffle: whether fitkit shuffles; ``None``: training data yes, other data no.
        loader_kwargs: further arguments of ``torch.utils.data.DataLoader``.
        global_batch_size: samples per batch over all processes, in the place of ``batch_size``.
    """

    data: Any
    batch_size: int | None = None
    shuffle: bool | None = None
    loader_kwargs: Mapping[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None

    def override(self, *, batch_size: int | None, shuffle: bool | None) -> DataSpec:
        """The same data, with what is not ``None`` replaced."""
        return replace(
            self,
            batch_size=self.batch_size if batch_size is None else batch_size,
            global_batch_size=self.global_batch_size if batch_size is None else None,
            shuffle=self.shuffle if shuffle is None else shuffle,
        )


def loader_settings(spec: DataSpec) -> dict[str, Any] | None:
    """What decides how fast data is loaded: empty for a plain iterable, ``None`` in memory."""
    data, kwargs = spec.data, spec.loader_kwargs
    if is_in_memory(data) or (tensors_of(data) is not None and not set(kwargs) - {"drop_last"}):
        return None
    if isinstance(data, DataLoader):
        return {"num_workers": data.num_workers, "pin_memory": data.pin_memory}
    if is_map_style(data) or isinstance(data, IterableDataset):
        pins = kwargs.get("pin_memory", False)
        return {"num_workers": kwargs.get("num_workers", 0), "pin_memory": pins}
    return {}


def require_rereadable(spec: DataSpec, what: str) -> None:
    """Fail for an iterator, which gives its batches only once.

    Args:
        spec: the data.
        what: what reads it more than once.

    Raises:
        ConfigurationError: it is one.
    """
    if isinstance(spec.data, Iterator):
        raise ConfigurationError(
            f"{what} reads the same batches more than once, which {describe(spec.data)} cannot: "
            f"pass a Dataset, a DataLoader or a list of batches."
        )


def split_off_validation(spec: DataSpec, fraction: float) -> tuple[DataSpec, DataSpec]:
    """The data without its last ``fraction``, and that fraction, as Keras splits: before shuffling.

    Args:
        spec: arrays or a map-style data set.
        fraction: in ``(0, 1)``; both parts get at least one sample.

    Raises:
        ConfigurationError: the fraction is out of range, or the data cannot be split.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ConfigurationError(f"validation_split must lie in (0, 1), received {fraction!r}.")
    data = spec.data
    if is_in_memory(data):
        size = common_length(data)
    elif is_map_style(data):
        size = require_length(data)
    else:
        raise ConfigurationError(
            f"validation_split needs arrays or a map-style Dataset, received {describe(data)}: "
            f"split the data yourself and pass validation_data=."
        )
    if spec.loader_kwargs.get("sampler") or spec.loader_kwargs.get("batch_sampler"):
        raise ConfigurationError(
            "validation_split cannot be combined with a sampler, whose indices mean the whole data "
            "set: split the data yourself and pass validation_data=."
        )
    kept = int(size * (1.0 - fraction))
    if not 0 < kept < size:
        raise ConfigurationError(
            f"validation_split={fraction} of {size} samples leaves {kept} for training and "
            f"{size - kept} for validation: both need at least one."
        )
    if is_in_memory(data):
        train, held_out = take(data, slice(0, kept)), take(data, slice(kept, size))
    elif (tensors := tensors_of(data)) is not None:
        train = TensorDataset(*take(tensors, slice(0, kept)))
        held_out = TensorDataset(*take(tensors, slice(kept, size)))
    else:
        train, held_out = Subset(data, range(kept)), Subset(data, range(kept, size))
    return replace(spec, data=train), replace(spec, data=held_out, shuffle=False)
