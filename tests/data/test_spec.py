import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fitkit.core.errors import ConfigurationError, DataError
from fitkit.data.spec import (
    DataSpec,
    loader_settings,
    may_list_samples,
    require_rereadable,
    split_off_validation,
    with_targets,
)

TENSOR = torch.arange(10)


class Squares(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index * index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TENSOR)


@pytest.mark.parametrize("data", [TENSOR, np.arange(10)])
def test_the_last_part_is_held_out(data):
    spec = DataSpec(data, batch_size=3, shuffle=True)
    train, held_out = split_off_validation(spec, 0.2)
    assert list(train.data) == list(range(8))
    assert list(held_out.data) == [8, 9]
    assert (train.batch_size, train.shuffle) == (3, True)
    assert (held_out.batch_size, held_out.shuffle) == (3, False)
    assert spec.data is data


def test_pairs_and_mappings_are_split_alike():
    train, held_out = split_off_validation(DataSpec({"x": (TENSOR, TENSOR), "y": TENSOR}), 0.3)
    assert train.data["x"][1].tolist() == train.data["y"].tolist() == list(range(7))
    assert held_out.data["x"][0].tolist() == [7, 8, 9]


def test_data_sets_are_split():
    train, held_out = split_off_validation(DataSpec(Squares()), 0.2)
    assert list(train.data) == [i * i for i in range(8)]
    assert list(held_out.data) == [64, 81]
    train, held_out = split_off_validation(DataSpec(TensorDataset(TENSOR, TENSOR * 2)), 0.2)
    assert type(train.data) is TensorDataset, "tensors stay tensors, fetched a batch at a time"
    assert held_out.data.tensors[1].tolist() == [16, 18]


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.5, 2, True, None, "0.2", float("nan")])
def test_the_fraction_must_lie_in_the_open_interval(fraction):
    with pytest.raises(
        ConfigurationError, match=r"validation_split must lie in \(0, 1\), received"
    ):
        split_off_validation(DataSpec(TENSOR), fraction)


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.5), (3, 0.9), (10, 1e-20), (0, 0.5)])
def test_both_parts_need_a_sample(size, fraction):
    with pytest.raises(ConfigurationError, match=f"of {size} samples leaves .* at least one"):
        split_off_validation(DataSpec(torch.zeros(size)), fraction)


@pytest.mark.parametrize("data", [DataLoader(Squares()), [TENSOR], Stream(), iter([])])
def test_other_data_cannot_be_split(data):
    with pytest.raises(
        ConfigurationError, match=r"arrays or a map-style Dataset, received .* split"
    ):
        split_off_validation(DataSpec(data), 0.5)


def test_arrays_that_do_not_fit_are_not_split():
    with pytest.raises(DataError, match=r"\(10,\), \(9,\)"):
        split_off_validation(DataSpec((TENSOR, TENSOR[1:])), 0.5)
    with pytest.raises(DataError, match=r"the shapes \(\)"):
        split_off_validation(DataSpec(torch.tensor(1.0)), 0.5)


@pytest.mark.parametrize("kwargs", [{"sampler": [1, 2]}, {"batch_sampler": [[1]]}])
def test_a_sampler_of_the_whole_cannot_sample_a_part(kwargs):
    with pytest.raises(ConfigurationError, match="cannot be combined with a sampler"):
        split_off_validation(DataSpec(Squares(), loader_kwargs=kwargs), 0.5)


NOTHING = {"num_workers": 0, "pin_memory": False}
PLAIN = TensorDataset(TENSOR)


@pytest.mark.parametrize(
    ("data", "kwargs", "expected"),
    [
        (TENSOR, {}, None),
        ((TENSOR, TENSOR), {}, None),
        (PLAIN, {"drop_last": True}, None),
        (PLAIN, {"num_workers": 2}, {"num_workers": 2, "pin_memory": False}),
        (Squares(), {}, NOTHING),
        (Squares(), {"num_workers": 3, "pin_memory": True}, {"num_workers": 3, "pin_memory": True}),
        (Stream(), {}, NOTHING),
        (DataLoader(Squares(), num_workers=1), {}, {"num_workers": 1, "pin_memory": False}),
        ([TENSOR], {}, {}),
    ],
)
def test_what_decides_how_fast_data_is_loaded(data, kwargs, expected):
    assert loader_settings(DataSpec(data, loader_kwargs=kwargs)) == expected


def test_what_gives_its_batches_only_once_is_refused():
    for data in (TENSOR, [TENSOR], Squares(), Stream(), DataLoader(Squares())):
        require_rereadable(DataSpec(data), "a test")
    for once in (iter([TENSOR]), (row for row in TENSOR)):
        with pytest.raises(ConfigurationError, match="a test reads the same batches more than"):
            require_rereadable(DataSpec(once), "a test")


# ---- fit(x, y) ----------------------------------------------------------------------------------


def test_targets_beside_the_inputs():
    x, y = TENSOR.float(), np.arange(10)
    assert with_targets(x, None) is x
    assert with_targets(None, None) is None
    assert with_targets(x, y) == (x, y)
    assert with_targets((x, x), y) == ((x, x), y)
    assert with_targets({"a": x}, y) == ({"a": x}, y)


@pytest.mark.parametrize(
    ("data", "targets", "message"),
    [
        (TENSOR, 10, r"the targets y, received 10: pass .* by name, such as epochs=10 or batch_si"),
        (TENSOR, True, "received True"),
        (PLAIN, 5, "received 5"),
        (PLAIN, TENSOR, "go with inputs that are arrays.*received a TensorDataset: pass data that"),
        (DataLoader(PLAIN), TENSOR, "received a DataLoader"),
        ([TENSOR], TENSOR, "received a list of 1 elements.* convert lists to arrays"),
        (None, TENSOR, "received a NoneType"),
        (PLAIN, PLAIN, "received a TensorDataset: pass data to validate on as validation_data="),
        (TENSOR, DataLoader(PLAIN), "as validation_data="),
        (TENSOR, [1, 2], "the targets y must be an array.* received a list of 2 elements: conv"),
    ],
)
def test_a_second_argument_that_is_no_targets(data, targets, message):
    with pytest.raises(ConfigurationError, match=message):
        with_targets(data, targets)


def test_the_held_out_part_keeps_its_last_batch():
    spec = DataSpec(Squares(), loader_kwargs={"drop_last": True, "num_workers": 2})
    train, held_out = split_off_validation(spec, 0.2)
    assert train.loader_kwargs == spec.loader_kwargs
    assert held_out.loader_kwargs == {"num_workers": 2}


@pytest.mark.parametrize(
    ("data", "kwargs", "expected"),
    [
        (Squares(), {}, False),
        (Squares(), {"collate_fn": list}, True),
        (DataLoader(Squares()), {}, False),
        (DataLoader(Squares(), collate_fn=list), {}, True),
        (DataLoader(Squares(), batch_size=None), {}, True),
        ([TENSOR], {}, True),
        (TENSOR, {}, False),
    ],
)
def test_batches_that_may_be_lists_of_samples(data, kwargs, expected):
    assert may_list_samples(DataSpec(data, loader_kwargs=kwargs)) is expected
