"""DataSpec: the user's data with its loading options; splits off validation data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from fitkit.core.argument_checks import require_count
from fitkit.core.errors import ConfigurationError, describe
from fitkit.data.frames import as_arrays
from fitkit.data.in_memory import common_length, is_in_memory, slice_samples, tensors_of
from fitkit.data.own_part import AUTO, require_split
from fitkit.data.sample_count import SampleCount, SizeOf
from fitkit.data.seeded_fetch import is_map_style, require_length


@dataclass(frozen=True)
class DataSpec:
    """The user's data with its loading options.

    Attributes:
        data: arrays, a dataset, a loader, or an iterable of batches.
        batch_size: samples per batch and rank; ``None``: 32, if fitkit makes the batches.
        shuffle: whether fitkit shuffles; ``None``: training data only.
        loader_kwargs: other arguments of ``torch.utils.data.DataLoader``.
        global_batch_size: samples per batch over all ranks, instead of ``batch_size``.
        num_samples: returns the number of samples in a batch; ``None``: see ``SampleCount``.
        split: ``"rank"`` if the data of each rank is its own part; ``"auto"``: see ``own_part``.
    """

    data: Any
    batch_size: int | None = None
    shuffle: bool | None = None
    loader_kwargs: Mapping[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None
    num_samples: SizeOf | None = None
    split: str = AUTO

    @classmethod
    def from_loader_kwargs(cls, dataset: Any, loader_kwargs: Mapping[str, Any]) -> DataSpec:
        """The data and arguments of ``set_train_loader`` or ``set_val_loader``."""
        kwargs = dict(loader_kwargs)
        batch_size = kwargs.pop("batch_size", None)
        global_batch_size = kwargs.pop("global_batch_size", None)
        require_count("global_batch_size", global_batch_size, optional=True)
        if batch_size is not None and global_batch_size is not None:
            raise ConfigurationError("batch_size and global_batch_size were both given: pass one.")
        shuffle = kwargs.pop("shuffle", None)
        num_samples = SampleCount(kwargs.pop("num_samples", None)).function
        split = require_split(kwargs.pop("split", AUTO))
        return cls(dataset, batch_size, shuffle, kwargs, global_batch_size, num_samples, split)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_arrays(self.data))

    def with_loader_kwargs(self, kwargs: Mapping[str, Any]) -> DataSpec:
        """The same data with more arguments for its ``DataLoader``."""
        return replace(self, loader_kwargs={**self.loader_kwargs, **kwargs}) if kwargs else self

    def override(
        self,
        *,
        batch_size: int | None,
        shuffle: bool | None,
        num_samples: SizeOf | None = None,
        split: str = AUTO,
    ) -> DataSpec:
        """The same data with other options; ``None`` and ``"auto"`` keep an option."""
        return replace(
            self,
            split=self.split if split == AUTO else split,
            num_samples=self.num_samples if num_samples is None else num_samples,
            batch_size=self.batch_size if batch_size is None else batch_size,
            global_batch_size=self.global_batch_size if batch_size is None else None,
            shuffle=self.shuffle if shuffle is None else shuffle,
        )


def is_batched_by_fitkit(data: Any) -> bool:
    """Whether fitkit makes the batches; loaders and iterables of batches bring their own."""
    return is_in_memory(data) or is_map_style(data) or isinstance(data, IterableDataset)


def may_list_samples(spec: DataSpec) -> bool:
    """Whether a batch that is a list may have one entry per sample.

    The lists that torch's ``default_collate`` makes have one entry per field of a sample.
    """
    if isinstance(spec.data, DataLoader):
        return spec.data.collate_fn is not default_collate
    return spec.loader_kwargs.get("collate_fn") is not None or not is_batched_by_fitkit(spec.data)


def loader_settings(spec: DataSpec) -> dict[str, Any] | None:
    """The options for loading speed: empty for a plain iterable, ``None`` for data in memory."""
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
    """Raise ``ConfigurationError`` if the data is an iterator, which ``what`` cannot read twice."""
    if isinstance(spec.data, Iterator):
        raise ConfigurationError(
            f"{what} reads the same batches more than once, which {describe(spec.data)} cannot: "
            f"pass a Dataset, a DataLoader or a list of batches."
        )


def split_off_validation(spec: DataSpec, fraction: float) -> tuple[DataSpec, DataSpec]:
    """Split off the last ``fraction`` of the samples, before shuffling, as Keras does.

    Args:
        spec: arrays or a map-style dataset.
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
            "validation_split cannot be combined with a sampler, whose indices refer to the whole "
            "dataset: split the data yourself and pass validation_data=."
        )
    num_train = int(size * (1.0 - fraction))
    if not 0 < num_train < size:
        raise ConfigurationError(
            f"validation_split={fraction} of {size} samples leaves {num_train} for training and "
            f"{size - num_train} for validation: both need at least one."
        )
    train, held_out = (
        _select(data, start, stop) for start, stop in ((0, num_train), (num_train, size))
    )
    kwargs = {key: value for key, value in spec.loader_kwargs.items() if key != "drop_last"}
    validation = replace(spec, data=held_out, shuffle=False, loader_kwargs=kwargs)
    return replace(spec, data=train), validation


def with_targets(data: Any, targets: Any) -> Any:
    """The data ``(inputs, targets)`` of ``fit(inputs, targets)``; ``data`` without targets.

    Raises:
        ConfigurationError: one of both is no array.
    """
    if targets is None:
        return data
    if isinstance(targets, (bool, int, float, str)):
        raise ConfigurationError(
            f"the second argument is the targets y, received {targets!r}: pass other arguments by "
            f"name, such as epochs={targets!r} or batch_size={targets!r}."
        )
    if isinstance(targets, (Dataset, DataLoader)):
        raise ConfigurationError(
            f"the second argument is the targets y, received {describe(targets)}: pass data to "
            f"validate on as validation_data=."
        )
    inputs, targets = as_arrays(data), as_arrays(targets)
    if not is_in_memory(inputs):
        raise ConfigurationError(
            f"targets y go with inputs that are arrays, tensors or frames, received "
            f"{describe(data)}: pass data that has its targets alone, and convert lists to arrays."
        )
    if not is_in_memory(targets):
        raise ConfigurationError(
            f"the targets y must be an array, a tensor or a series, received {describe(targets)}: "
            f"convert them, for instance with numpy.asarray."
        )
    return inputs, targets


def _select(data: Any, start: int, stop: int) -> Any:
    if is_in_memory(data):
        return slice_samples(data, slice(start, stop))
    if (tensors := tensors_of(data)) is not None:
        return TensorDataset(*slice_samples(tensors, slice(start, stop)))
    return Subset(data, range(start, stop))
