import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from fitkit.core.errors import DataError
from fitkit.data.map_style import MapStyleSource
from fitkit.data.seeded_fetch import index_tensors, is_map_style, require_length

PLAIN = TensorDataset(torch.zeros(3))


class Augmented(TensorDataset):
    pass


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, [2, 1, 0])])
def test_a_subset_fetches_batches_only_if_what_it_is_of_does(wrap):
    asked = []

    class AtOnce(StackDataset):
        def __getitems__(self, indices):
            asked.append(indices)
            return super().__getitems__(indices)

    list(MapStyleSource(DataLoader(wrap(AtOnce(PLAIN)), 3), 0).iterate(0))
    assert len(asked) == 1


def test_map_style():
    assert is_map_style(PLAIN)
    assert not is_map_style([1, 2])
    assert not is_map_style({"a": 1})
    assert not is_map_style("text")


def test_require_length():
    assert require_length(PLAIN) == 3
    with pytest.raises(DataError, match="Dataset has no length"):
        require_length(Dataset())


# ---- a batch of a TensorDataset at once

MIXED = TensorDataset(torch.randn(9, 2, 3), torch.arange(9), torch.arange(9) % 2 == 0)


def one_by_one(dataset, indices):
    return default_collate([dataset[index] for index in indices])


@pytest.mark.parametrize(
    ("dataset", "indices"),
    [
        (MIXED, [3, 1, 4, 1]),
        (MIXED, [8]),
        (Subset(MIXED, [8, 7, 6, 5]), [3, 0, 0]),
        (Subset(Subset(MIXED, torch.arange(9).flip(0)), [8, 1, 2]), [2, 1]),
    ],
)
def test_rows_at_once_are_what_collation_makes_of_samples(dataset, indices):
    at_once, expected = index_tensors(dataset, indices), one_by_one(dataset, indices)
    assert type(at_once) is type(expected) is list
    for ours, torchs in zip(at_once, expected, strict=True):
        assert torch.equal(ours, torchs)
        assert (ours.dtype, ours.stride()) == (torchs.dtype, torchs.stride())
        assert ours.data_ptr() not in [tensor.data_ptr() for tensor in MIXED.tensors]


@pytest.mark.parametrize(
    ("dataset", "indices"),
    [
        (MIXED, [-1, 2]),
        (MIXED, [0, 9]),
        (MIXED, (1, 2)),
        (MIXED, torch.tensor([1, 2])),
        (MIXED, [True, False]),
        (Subset(MIXED, [1, 2]), (0, 1)),
        (Augmented(torch.zeros(3)), [0]),
        (TensorDataset(torch.zeros(4, 3).t()), [0]),
        (TensorDataset(torch.nn.Parameter(torch.zeros(3))), [0]),
        (TensorDataset(torch.eye(3).to_sparse()), [0]),
        (StackDataset(PLAIN), [0]),
    ],
)
def test_what_is_fetched_one_by_one(dataset, indices):
    assert index_tensors(dataset, indices) is None


def test_indices_from_the_end_and_beyond_it_are_as_in_torch(kit):
    source = MapStyleSource(DataLoader(MIXED, batch_sampler=[[-1, 0]]), 0)
    (batch,) = source.iterate(0)
    assert batch[1].tolist() == [8, 0]
    with pytest.raises(IndexError, match="index 9 is out of bounds"):
        list(MapStyleSource(DataLoader(MIXED, batch_sampler=[[9]]), 0).iterate(0))


def test_tensors_put_into_the_data_set_later_are_those_that_are_read():
    dataset = TensorDataset(torch.zeros(4))
    source = MapStyleSource(DataLoader(dataset, 2), 0)
    assert [batch[0].tolist() for batch in source.iterate(0)] == [[0, 0], [0, 0]]
    dataset.tensors = (torch.ones(4),)
    assert [batch[0].tolist() for batch in source.iterate(1)] == [[1, 1], [1, 1]]


# ---- what workers know --------------------------------------------------------------------------


class OfWorker(Dataset):
    """Its samples say what ``get_worker_info`` says of it."""

    value = 0.0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        known = get_worker_info().dataset
        known = known.dataset if isinstance(known, Subset) else known
        return torch.tensor([index, float(known is self), self.value, get_worker_info().id])


def open_file(worker_id):
    dataset = get_worker_info().dataset
    (dataset.dataset if isinstance(dataset, Subset) else dataset).value = 7.0 + worker_id


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, [0, 1, 2, 3])])
def test_a_worker_knows_the_user_s_own_dataset(wrap, persistent):
    options = {"num_workers": 1, "worker_init_fn": open_file, "persistent_workers": persistent}
    loader = DataLoader(wrap(OfWorker()), batch_size=2, **options)
    source = MapStyleSource(loader, 0)
    expected = [[[0, 1, 7, 0], [1, 1, 7, 0]], [[2, 1, 7, 0], [3, 1, 7, 0]]]
    for epoch in range(2):
        assert [batch.tolist() for batch in source.iterate(epoch)] == expected
    del source._loader


def test_nested_fields_of_a_sample_are_a_tuple_in_the_batch():
    data = StackDataset(StackDataset(torch.arange(4), torch.arange(4.0)), torch.zeros(4))
    for workers in (0, 1):
        loader = DataLoader(data, 4, num_workers=workers)
        ((inputs, targets),) = MapStyleSource(loader, 0).iterate(0)
        assert isinstance(inputs, tuple)
        assert inputs[1].tolist() == [0, 1, 2, 3]
        assert targets.tolist() == [0] * 4
    loader = DataLoader(data, 4, collate_fn=lambda samples: [[samples], 1])
    assert next(iter(MapStyleSource(loader, 0).iterate(0)))[0].__class__ is list
