"""What is one validation set, what are several, and what could be either."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fitkit import ConfigurationError
from fitkit.data.validation_sets import add_validation_sets, as_validation_sets

X, Y = torch.ones(4, 2), torch.zeros(4, 1)
DATASET = TensorDataset(X, Y)
LOADER = DataLoader(DATASET, batch_size=2)


class Plain:
    """A map-style dataset by its methods."""

    def __getitem__(self, index):
        return X[index], Y[index]

    def __len__(self):
        return 4


@pytest.mark.parametrize(
    "data",
    [
        None,
        (X, Y),
        DATASET,
        LOADER,
        [(X, Y), (X, Y)],
        {"x": X, "y": Y},
        {"x": X.numpy(), "z": Y.numpy()},
        {"x": (X, X), "y": Y},
        {"x": (X, X), "y": (Y, Y)},
        {"inputs": {"a": X, "b": X}, "labels": {"c": Y}},
        {"inputs": {"a": X, "b": X}, "other": X},
        {},
    ],
    ids=lambda data: type(data).__name__,
)
def test_one_set(data):
    sets = as_validation_sets(data)
    assert list(sets) == [""]
    assert sets[""] is data


@pytest.mark.parametrize(
    "make",
    [
        lambda: DATASET,
        lambda: LOADER,
        lambda: Plain(),
        lambda: (X, Y),
        lambda: (X.numpy(), Y.numpy()),
        lambda: (X,),
        lambda: [(X, Y)],
        lambda: {"x": X, "y": Y},
        lambda: iter([(X, Y)]),
    ],
)
def test_several_sets(make):
    data = {"clean": make(), "noisy": make()}
    sets = as_validation_sets(data)
    assert list(sets) == ["clean", "noisy"]
    assert all(sets[name] is data[name] for name in data)


def test_sets_of_different_kinds():
    data = {"pair": (X, Y), "loader": LOADER, "y": DATASET}
    assert as_validation_sets(data) == data


@pytest.mark.parametrize(
    "data", [[LOADER, LOADER], (DATASET, DATASET), [Plain(), Plain()], (X, DATASET), [DATASET]]
)
def test_sets_without_names_are_refused_and_the_dict_is_named(data):
    with pytest.raises(ConfigurationError, match=r"must be a dict .*\{'clean': a, 'noisy': b\}"):
        as_validation_sets(data)


def test_a_mixture_of_arrays_and_datasets_is_refused():
    with pytest.raises(ConfigurationError, match=r"arrays for 'b' beside .* a tuple of one array"):
        as_validation_sets({"a": DATASET, "b": X})


@pytest.mark.parametrize("name", ["", 0, None])
def test_names_of_sets_are_strings(name):
    with pytest.raises(ConfigurationError, match="name of a validation set must be a non-empty"):
        as_validation_sets({"a": DATASET, name: DATASET})
    with pytest.raises(ConfigurationError, match="name of a validation set must be a non-empty"):
        add_validation_sets({}, DATASET, 7, {})


def test_a_name_adds_a_set_and_without_one_all_are_replaced():
    first = add_validation_sets({}, DATASET, None, {"batch_size": 3})
    both = add_validation_sets(first, (X, Y), "b", {"batch_size": 2})
    assert {name: spec.batch_size for name, spec in both.items()} == {"": 3, "b": 2}
    again = add_validation_sets(both, LOADER, "b", {})
    assert again["b"].data is LOADER
    assert again[""] is first[""]
    other = add_validation_sets(both, {"c": DATASET, "d": (X, Y)}, None, {"batch_size": 1})
    assert {name: spec.batch_size for name, spec in other.items()} == {"c": 1, "d": 1}
    with pytest.raises(ConfigurationError, match=r"takes one set, received a dict of the sets 'c'"):
        add_validation_sets(both, {"c": DATASET}, "b", {})


def test_a_dataset_with_a_length_only_is_a_set():
    class Own(Dataset):
        def __getitem__(self, index):
            return np.ones(2)

    assert list(as_validation_sets({"own": Own()})) == ["own"]


def test_pairs_under_names_of_targets_are_sets():
    pair = (torch.ones(2, 1), torch.zeros(2, 1))
    assert set(as_validation_sets({"source": pair, "target": pair})) == {"source", "target"}
    for one in ({"x": pair, "y": pair}, {"inputs": pair, "labels": pair[0]}, {"y": pair[0]}):
        assert list(as_validation_sets(one)) == [""]
