"""The passes of a call of fit: their data and their limits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import ConfigurationError, NNHandler
from fitkit.data.spec import DataSpec
from fitkit.training.data_passes import make_data_passes
from fitkit.training.options import FitOptions

X = torch.arange(12.0).reshape(6, 2)
TRAIN = DataSpec((X, X[:, :1]), 2)
SETS = {"a": DataSpec((X[:4], X[:4, :1]), 1), "b": DataSpec((X[:3], X[:3, :1]), 2)}


@pytest.fixture
def handler():
    return NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)


def rows(data_pass):
    return [batch[0][:, 0].tolist() for batch in data_pass.batches()]


def test_each_set_has_its_own_pass_with_the_same_limit(handler):
    train, sets = make_data_passes(handler, FitOptions(validation_steps=3), TRAIN, SETS)
    assert (train.num_batches, {n: p.num_batches for n, p in sets.items()}) == (3, {"a": 3, "b": 2})
    assert rows(sets["a"]) == [[0.0], [2.0], [4.0]]
    assert rows(sets["b"]) == [[0.0, 2.0], [4.0]]
    assert sets["a"].meters is not sets["b"].meters
    assert make_data_passes(handler, FitOptions(), TRAIN, {})[1] == {}


@pytest.mark.parametrize(("batches", "count"), [(2, 2), (0.34, 1), (0.5, 2), (1.0, 3)])
def test_overfitting_reads_the_first_training_batches_in_order(handler, batches, count):
    train, sets = make_data_passes(handler, FitOptions(overfit_batches=batches), TRAIN, SETS)
    first = [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]][:count]
    assert rows(train) == rows(sets["a"]) == rows(sets["b"]) == first


def test_what_cannot_be_read_twice_or_counted_is_refused(handler):
    once = DataSpec(iter([(X, X)]))
    with pytest.raises(ConfigurationError, match="overfit_batches reads the same batches more"):
        make_data_passes(handler, FitOptions(overfit_batches=1), once, {})

    class Endless:
        def __iter__(self):
            return iter([(X, X)])

    with pytest.raises(ConfigurationError, match=r"overfit_batches=0\.5 is a share"):
        make_data_passes(handler, FitOptions(overfit_batches=0.5), DataSpec(Endless()), {})
