import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from fitkit.core.errors import DataError
from fitkit.data.fetching import fetches_batches, is_draw_free, is_map_style, require_length

PLAIN = TensorDataset(torch.zeros(3))


class Augmented(TensorDataset):
    pass


@pytest.mark.parametrize("data", [PLAIN, Subset(PLAIN, [0]), ConcatDataset([PLAIN, PLAIN])])
def test_data_sets_that_cannot_draw(data):
    assert is_draw_free(data)


@pytest.mark.parametrize(
    "data",
    [
        Augmented(torch.zeros(3)),
        Subset(Augmented(torch.zeros(3)), [0]),
        ConcatDataset([PLAIN, Augmented(torch.zeros(3))]),
        StackDataset(PLAIN),
        Dataset(),
        [1, 2],
    ],
)
def test_data_sets_that_may_draw(data):
    assert not is_draw_free(data)


def test_a_subset_fetches_batches_only_if_what_it_is_of_does():
    assert not fetches_batches(Subset(PLAIN, [0]))
    assert fetches_batches(Subset(StackDataset(PLAIN), [0]))


def test_map_style():
    assert is_map_style(PLAIN)
    assert not is_map_style([1, 2])
    assert not is_map_style({"a": 1})
    assert not is_map_style("text")


def test_require_length():
    assert require_length(PLAIN) == 3
    with pytest.raises(DataError, match="Dataset has no length"):
        require_length(Dataset())
