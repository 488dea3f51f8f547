"""Frames, series and arrays of other libraries: the right numbers, or an error that names them."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fitkit import DataError, NNHandler
from fitkit.data.frames import as_arrays

Pair = namedtuple("Pair", "x y")
ROWS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


class Series:
    """A column as pandas and polars have it, without either."""

    def __init__(self, values, dtype=None, missing=0):
        self.values = np.asarray(values)
        self.dtype = self.values.dtype if dtype is None else dtype
        self.missing = missing

    def to_numpy(self):
        return self.values

    def null_count(self):
        return self.missing


class Frame:
    """A frame as pandas has it: its columns by name, which need not be unique."""

    def __init__(self, *columns):
        self.columns = [name for name, _ in columns]
        self._columns = columns

    def items(self):
        return iter(self._columns)

    def to_numpy(self):
        raise AssertionError("columns of several types would become objects")


class Sparse:
    nnz, shape, dtype = 3, (3, 2), np.dtype(float)

    def toarray(self):
        return ROWS


class Lazy:
    columns = ("a",)

    def collect_schema(self):
        return {}


class Table:
    def __dataframe__(self):
        return self

    def __getitem__(self, index):
        return ROWS[index]

    def __len__(self):
        return 3


class Other:
    """An array of another library."""

    dtype, shape = ROWS.dtype, ROWS.shape

    def __array__(self, dtype=None, copy=None):
        return ROWS


def frame_of(*dtypes):
    return Frame(*[(f"c{i}", Series(ROWS[:, i % 2].astype(d))) for i, d in enumerate(dtypes)])


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float64", "float64"), "float64"),
        (("float32", "int64"), "float64"),
        (("int8", "int64"), "int64"),
        (("uint8", "uint8"), "int64"),
        (("uint64", "int64"), "int64"),
        (("bool", "bool"), "bool"),
        (("bool", "int32"), "int64"),
        (("bool", "float32"), "float32"),
    ],
)
def test_columns_of_several_types_side_by_side(dtypes, expected):
    array = as_arrays(frame_of(*dtypes))
    assert array.dtype == expected
    assert array.shape == (3, 2)
    assert array[:, 1].tolist() == ROWS[:, 1].astype(dtypes[1]).tolist()


def test_frames_are_found_in_tuples_and_mappings():
    frame, series = frame_of("float64", "float64"), Series([1, 2, 3])
    x, y = as_arrays((frame, series))
    assert np.array_equal(x, ROWS)
    assert y.tolist() == [1, 2, 3]
    named = as_arrays(Pair({"a": frame}, series))
    assert type(named) is Pair
    assert np.array_equal(named.x["a"], ROWS)
    assert np.array_equal(as_arrays(Other()), ROWS)


DATASET = TensorDataset(torch.zeros(3))


@pytest.mark.parametrize(
    "data", [ROWS, (ROWS, torch.zeros(3)), {"x": ROWS}, [Other()], DATASET, "text", 3, None, (), {}]
)
def test_other_data_stays(data):
    assert as_arrays(data) is data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Frame(("a", Series(ROWS[:, 0])), ("city", Series(["x", "y", "z"], "category"))),
            "the column 'city' holds category, no numbers: encode it as numbers",
        ),
        (Frame(("when", Series(["2020"], "datetime64[ns]"))), "column 'when' holds datetime64"),
        (Series(np.array([1, None]), "object"), "the Series holds object, no numbers"),
        (Frame(("a", Series(ROWS[:, 0], missing=2))), "the column 'a' has 2 missing values: fill"),
        (Frame(("a", Series(ROWS))), "the column 'a' holds arrays: pass it as data of its own"),
        (Frame(), "a Frame without columns holds no data"),
        (Sparse(), r"a Sparse is sparse .*pass its toarray\(\), or a Dataset"),
        (Lazy(), r"a Lazy holds no rows yet: pass its collect\(\)"),
        (Table(), r"a Table is a frame without to_numpy: convert it, .* to_pandas\(\)"),
        (torch.eye(3).to_sparse(), r"layout torch.sparse_coo .*to_dense\(\), or a Dataset"),
        (np.ma.masked_array(ROWS, ROWS > 5), r"has 1 missing values: pass array.filled\(value\)"),
    ],
)
def test_what_is_no_dense_array_of_numbers_is_refused(data, message):
    for nested in (data, (data, ROWS), {"x": data}):
        with pytest.raises(DataError, match=message):
            as_arrays(nested)


def test_a_masked_array_without_masked_values_is_an_array():
    array = as_arrays(np.ma.masked_array(ROWS))
    assert type(array) is np.ndarray
    assert np.array_equal(array, ROWS)


def make_handler():
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.01)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def test_a_fit_on_frames_is_a_fit_on_their_arrays():
    frame, y = frame_of("float64", "float64"), Frame(("y", Series(ROWS[:, 0])))
    weights = []
    for data in ((frame, y), (ROWS, ROWS[:, :1])):
        handler = make_handler()
        handler.fit(data, epochs=3, batch_size=2, validation_split=0.4, progress_bar=False)
        weights.append(handler.module.weight.detach())
    assert torch.equal(*weights)
    handler.set_val_loader((frame, y))
    assert handler.evaluate() == handler.evaluate((ROWS, ROWS[:, :1]))
    assert torch.equal(handler.predict(frame), handler.predict(ROWS))
    assert "(3, 1)" in str(handler.summary(frame))


@pytest.mark.filterwarnings("error")
def test_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": ROWS[:, 0], "b": [2, 4, 6]}, index=[7, 3, 5])
    assert np.array_equal(as_arrays(frame), ROWS)
    assert as_arrays(frame[["b"]]).dtype == np.int64
    assert as_arrays(frame["b"]).tolist() == [2, 4, 6]
    twice = pd.concat([frame["b"], frame["b"]], axis=1)
    assert as_arrays(twice).tolist() == [[2, 2], [4, 4], [6, 6]]
    for dtype, kind in (("Int64", "int64"), ("Float32", "float32"), ("boolean", "bool")):
        series = as_arrays(pd.Series([1, 0, 1], dtype=dtype))
        assert series.tolist() == [1, 0, 1]
        assert series.dtype == kind
    for column, message in (
        (["x", "y", "z"], "'c' holds .*, no numbers"),
        (pd.Categorical(["x", "y", "x"]), "'c' holds category, no numbers"),
        (pd.to_datetime(["2020"] * 3), "'c' holds datetime64.*, no numbers"),
        (pd.array([1, None, 3], dtype="Int64"), "'c' has 1 missing values"),
        ([1, "2", 3], "'c' holds object, no numbers"),
    ):
        with pytest.raises(DataError, match=message):
            as_arrays(frame.assign(c=column))
    handler, other = make_handler(), make_handler()
    handler.fit(frame, frame[["a"]], epochs=2, progress_bar=False)
    other.fit((ROWS, ROWS[:, :1]), epochs=2, progress_bar=False)
    assert torch.equal(handler.module.weight, other.module.weight)
    assert torch.equal(handler.predict(frame), other.predict(ROWS))


@pytest.mark.filterwarnings("error")
def test_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": ROWS[:, 0], "b": [2, 4, 6]})
    assert np.array_equal(as_arrays(frame), ROWS)
    assert as_arrays(frame["b"]).tolist() == [2, 4, 6]
    for column, message in (
        (["x", "y", "z"], "'c' holds String, no numbers"),
        ([1, None, 3], "'c' has 1 missing values"),
        ([[1], [2], [3]], "'c' holds List.*, no numbers"),
    ):
        with pytest.raises(DataError, match=message):
            as_arrays(frame.with_columns(pl.Series("c", column)))
    with pytest.raises(DataError, match=r"a LazyFrame holds no rows yet: pass its collect\(\)"):
        as_arrays(frame.lazy())
    handler, other = make_handler(), make_handler()
    handler.fit((frame, frame[["a"]]), epochs=2, progress_bar=False)
    other.fit((ROWS, ROWS[:, :1]), epochs=2, progress_bar=False)
    assert torch.equal(handler.module.weight, other.module.weight)
