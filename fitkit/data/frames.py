"""Frames, series and arrays of other libraries as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fitkit.core.errors import DataError

NUMBER_KINDS = "biufc"  # of NumPy: bool, int, unsigned, float, complex

_KEPT = (Tensor, np.ndarray, Dataset, DataLoader, list, str, bytes, Mapping, type)


def as_arrays(data: Any) -> Any:
    """Data with its frames, series and arrays of other libraries as NumPy arrays.

    They are found in tuples and mappings, by their methods: ``to_numpy`` of pandas and polars, or
    ``__array__``. Rows are taken in their order, an index is not used. Other data stays.

    Raises:
        DataError: a column holds something else than numbers, or values are missing; a frame is
            lazy, or an array sparse.
    """
    if isinstance(data, tuple) and data:
        arrays = [as_arrays(part) for part in data]
        if all(array is part for array, part in zip(arrays, data, strict=True)):
            return data
        return type(data)(*arrays) if hasattr(data, "_fields") else tuple(arrays)
    if type(data) is dict:
        mapped = {key: as_arrays(value) for key, value in data.items()}
        return mapped if any(mapped[key] is not data[key] for key in data) else data
    if isinstance(data, np.ma.MaskedArray):
        return _without_mask(data)
    _refuse_other_layouts(data)
    if isinstance(data, _KEPT):
        return data
    if hasattr(data, "to_numpy") and hasattr(data, "columns"):
        return _frame_array(data)
    if hasattr(data, "to_numpy") and hasattr(data, "dtype"):
        return np.array(_series_array(data, f"the {type(data).__name__}"))  # it may be read-only
    if hasattr(data, "__array__") and hasattr(data, "dtype") and hasattr(data, "shape"):
        return np.asarray(data)
    return data


def _frame_array(frame: Any) -> np.ndarray[Any, Any]:
    """The columns side by side, in the type that holds all of them; unsigned ones as int64."""
    columns = [_series_array(series, _column_name(name)) for name, series in _columns_of(frame)]
    if not columns:
        raise DataError(f"a {type(frame).__name__} without columns holds no data: select some.")
    for (name, _), column in zip(_columns_of(frame), columns, strict=True):
        if column.ndim != 1:
            raise DataError(
                f"{_column_name(name)} holds arrays: pass it as data of its own, converted with "
                f"numpy.stack."
            )
    kinds = {column.dtype.kind for column in columns}
    if kinds == {"b"}:
        return np.stack(columns, axis=1)
    # of uint64 and int64 NumPy would make float64
    kind = np.dtype(np.int64) if kinds <= set("bui") else np.result_type(*columns)
    return np.stack([column.astype(kind, copy=False) for column in columns], axis=1)


def _columns_of(frame: Any) -> Iterator[tuple[Any, Any]]:
    if hasattr(frame, "items"):  # pandas; names need not be unique
        yield from frame.items()
    else:  # polars
        yield from ((column.name, column) for column in frame.iter_columns())


def _column_name(name: Any) -> str:
    return f"the column {name!r}"


def _series_array(series: Any, name: str) -> np.ndarray[Any, Any]:
    _refuse_missing(series, name)
    # of the nullable types of pandas, which older versions make objects
    native = getattr(getattr(series, "dtype", None), "numpy_dtype", None)
    array = np.asarray(series.to_numpy() if native is None else series.to_numpy(dtype=native))
    if array.dtype.kind not in NUMBER_KINDS:
        raise DataError(
            f"{name} holds {getattr(series, 'dtype', array.dtype)}, no numbers: encode it as "
            f"numbers (for instance one column per category), convert it, or leave it out."
        )
    return array


def _refuse_missing(series: Any, name: str) -> None:
    """Raise ``DataError`` for missing values; a NaN in a column of floats is a value."""
    if hasattr(series, "null_count"):  # polars
        missing = int(series.null_count())
    elif hasattr(series, "isna") and not isinstance(getattr(series, "dtype", None), np.dtype):
        missing = int(series.isna().sum())
    else:
        return
    if missing:
        raise DataError(f"{name} has {missing} missing values: fill them, or leave out their rows.")


def _without_mask(array: np.ma.MaskedArray[Any, Any]) -> np.ndarray[Any, Any]:
    missing = int(np.ma.getmaskarray(array).sum())
    if missing:
        raise DataError(
            f"a masked array has {missing} missing values: pass array.filled(value), or leave out "
            f"their rows."
        )
    return np.asarray(array.data)


def _refuse_other_layouts(data: Any) -> None:
    """Raise ``DataError`` for sparse arrays, and for frames that are lazy or give no array."""
    kind = type(data).__name__
    if isinstance(data, Tensor):
        if data.layout is not torch.strided or data.is_nested:
            raise DataError(
                f"a tensor of layout {data.layout} as data cannot be cut into batches: pass its "
                f"to_dense(), or a Dataset of its samples."
            )
    elif hasattr(data, "toarray") and hasattr(data, "nnz"):
        raise DataError(
            f"a {kind} is sparse and cannot be cut into batches: pass its toarray(), or a Dataset "
            f"that makes each sample dense."
        )
    elif hasattr(data, "collect_schema") and not hasattr(data, "to_numpy"):
        raise DataError(f"a {kind} holds no rows yet: pass its collect().")
    elif hasattr(data, "__dataframe__") and not hasattr(data, "to_numpy"):
        raise DataError(
            f"a {kind} is a frame without to_numpy: convert it, for instance with to_pandas()."
        )
