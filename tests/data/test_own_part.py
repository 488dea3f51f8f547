"""Which data is recognized as the part of one rank, and which as the same on all ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from fitkit import ConfigurationError
from fitkit.data.own_part import (
    AUTO,
    RANK,
    batch_digest,
    part_facts,
    replaces_sampler,
    require_split,
    resolve,
    splits_itself,
)

X = torch.arange(20.0)[:, None]
DATA = TensorDataset(X, X)


class Of(SequentialSampler):
    """A sampler of one of several ranks."""

    num_replicas = 2


class Processes(IterableDataset):
    """As ``IterableDatasetShard`` of transformers."""

    num_processes = 2

    def __iter__(self):
        return iter(X)


class Sub(DistributedSampler):
    """With an order of its own."""


def decided(*data, split=AUTO, lengths=None):
    """What is decided for the data of each rank."""
    lengths = [None] * len(data) if lengths is None else lengths
    facts = [part_facts(one, {}, split, len(data), n) for one, n in zip(data, lengths, strict=True)]
    return resolve("the data", facts)


def loader(**options):
    return DataLoader(DATA, **options)


def parts(size=2):
    return [Subset(DATA, range(rank, 20, size)) for rank in range(size)]


def test_what_split_takes():
    assert [require_split(one) for one in ("auto", "rank")] == [AUTO, RANK]
    for wrong in (None, True, "ranks", 0):
        with pytest.raises(ConfigurationError, match=r"split must be one of 'auto', 'rank', rec"):
            require_split(wrong)


def test_plain_distributed_samplers_are_replaced():
    sampler = DistributedSampler(DATA, 2, 0)
    for one in (
        loader(sampler=sampler),
        loader(batch_sampler=BatchSampler(sampler, 4, drop_last=False)),
    ):
        assert replaces_sampler(one)
        assert splits_itself(one, {}, 2) is None
        assert decided(one, one) == (AUTO, None, None)


@pytest.mark.parametrize(
    "data",
    [
        loader(sampler=Sub(DATA, 2, 0)),
        loader(sampler=Of(DATA)),
        loader(batch_sampler=BatchSampler(Of(DATA), 4, drop_last=False)),
        Processes(),
        DataLoader(Processes(), 4),
    ],
)
def test_samplers_and_data_sets_that_say_how_many_ranks_there_are(data):
    assert splits_itself(data, {}, 2) is not None
    assert splits_itself(data, {}, 1) is None
    assert splits_itself(data, {}, 3) is None
    assert decided(data, data) == (RANK, None, None)


def test_ordinary_data_is_the_same_on_all_ranks():
    for data in (DATA, loader(batch_size=4), (X, X), [(X, X)], {"x": X}, Subset(DATA, [1, 5])):
        assert decided(data, data) == (AUTO, None, None)


def test_what_is_declared_counts():
    assert decided(DATA, DATA, split=RANK) == (RANK, None, None)
    facts = [part_facts(DATA, {}, split, 2, None) for split in (RANK, AUTO)]
    split, problem, _ = resolve("the data", facts)
    assert (split, "on some ranks only" in problem) == (AUTO, True)


@pytest.mark.parametrize(
    "make",
    [
        lambda part: part,
        lambda part: DataLoader(part, 4),
        lambda part: loader(sampler=SubsetRandomSampler(part.indices)),
        lambda part: loader(sampler=list(part.indices)),
        lambda part: loader(batch_sampler=[[i] for i in part.indices]),
        lambda part: Subset(DATA, list(part.indices)),
        lambda part: Subset(DATA, np.array(part.indices)),
        lambda part: Subset(Subset(DATA, range(19, -1, -1)), part.indices),
    ],
)
def test_subsets_without_common_samples_are_parts(make):
    assert decided(*map(make, parts())) == (RANK, None, None)
    assert decided(*map(make, parts(3))) == (RANK, None, None)


def test_subsets_with_common_samples_are_an_error():
    for indices in ([range(12), range(8, 20)], [range(10), range(9, -1, -1)]):
        split, problem, _ = decided(*(Subset(DATA, one) for one in indices))
        assert split == AUTO
        assert "which overlap (pass split='rank'" in problem


def test_a_large_subset_is_told_by_few_of_its_indices():
    order = torch.randperm(1_000_000, generator=torch.Generator().manual_seed(0)).tolist()
    assert decided(Subset(DATA, order[:500_000]), Subset(DATA, order[500_000:]))[0] == RANK
    overlapping = decided(Subset(DATA, order[:600_000]), Subset(DATA, order[400_000:]))
    assert "overlap" in overlapping[1]
    padded = decided(Subset(DATA, order[:500_001]), Subset(DATA, order[500_000:]))
    assert padded[0] == RANK  # as samplers pad


def test_arrays_that_differ_are_parts_with_a_warning():
    for other in (X + 1, torch.cat([X[:-1], -X[-1:]])):
        split, problem, warning = decided((X, X), (other, X))
        assert (split, problem) == (RANK, None)
        assert "the data differs between ranks, so each rank takes all of its own" in warning
    assert "differs" in decided(TensorDataset(X), TensorDataset(X + 1))[2]
    assert decided((X.numpy(), X), (X.numpy().copy(), X)) == (AUTO, None, None)
    assert decided((X[:0], X[:0]), (X[:0], X[:0])) == (AUTO, None, None)


class Holding(Dataset):
    """A dataset of the user's own."""

    def __init__(self, held, length=3, **others):
        self.held, self.length = held, length
        vars(self).update(others)

    def __len__(self):
        if self.length is None:
            raise TypeError("it has no length")
        return self.length

    def __getitem__(self, index):
        raise AssertionError("no sample is loaded")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["a", "b", "c"], ["a", "b", "d"]),
        (("b", "b", "c"), ("a", "b", "c")),
        ([("a", 1), ("b", 2), ("c", 3)], [("a", 1), ("b", 2), ("c", 4)]),
        (np.arange(3), np.arange(1, 4)),
        (torch.arange(3), torch.arange(1, 4)),
        ([torch.ones(2)] * 3, [torch.zeros(2)] * 3),
    ],
)
def test_datasets_that_hold_other_things_per_sample_are_parts_with_a_warning(first, second):
    for wrap in (lambda one: one, DataLoader, lambda one: Subset(one, [0, 2])):
        split, problem, warning = decided(*(wrap(Holding(held)) for held in (first, second)))
        assert (split, problem) == (RANK, None)
        assert "the data differs between ranks" in warning
        assert decided(*(wrap(Holding(held)) for held in (first, first))) == (AUTO, None, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: Holding(["a", "b", "c"], rank=rank, cache=f"/tmp/{rank}", sizes=[rank, 2]),
        lambda rank: Holding(None, text=f"ab{rank}"),
        lambda rank: Holding([rank] * 3, length=None),
        lambda rank: Holding(torch.tensor(rank)),
        lambda rank: Holding([], length=0),
    ],
)
def test_what_a_dataset_holds_otherwise_may_differ(make):
    assert decided(make(0), make(1)) == (AUTO, None, None)


def test_generators_of_other_states_are_an_error():
    def shuffled(seed):
        generator = torch.Generator().manual_seed(seed)
        return loader(batch_size=4, shuffle=True, generator=generator)

    assert "seed it equally" in decided(shuffled(0), shuffled(1))[1]
    assert decided(shuffled(1), shuffled(1)) == (AUTO, None, None)


def test_digests_of_batches():
    same = {"x": torch.tensor([1.0, 2.0]), "y": [np.array([3]), "text", 4, None]}
    assert batch_digest(same) == batch_digest({"x": same["x"].clone(), "y": list(same["y"])})
    others = [
        {**same, "x": torch.tensor([1.0, 2.5])},
        {**same, "y": [np.array([4]), "text", 4, None]},
        {**same, "y": [np.array([3]), "other", 4, None]},
    ]
    assert len({batch_digest(one) for one in (same, *others)}) == 4
    for odd in (torch.zeros(0), torch.tensor(1.0), torch.ones(3, 4)[:, ::2], object(), None):
        assert batch_digest(odd) == batch_digest(odd)


def test_samplers_that_are_arguments_of_a_setter():
    for kwargs in ({"sampler": Of(DATA)}, {"batch_sampler": BatchSampler(Of(DATA), 4, False)}):
        assert splits_itself(DATA, kwargs, 2) is not None
    plain = DistributedSampler(DATA, 2, 0)
    for kwargs in ({"sampler": plain}, {"batch_sampler": BatchSampler(plain, 4, False)}):
        assert splits_itself(DATA, kwargs, 2) is None
    parts_of_sampler = [{"sampler": SubsetRandomSampler(part.indices)} for part in parts()]
    facts = [part_facts(DATA, kwargs, AUTO, 2, "20 samples") for kwargs in parts_of_sampler]
    assert resolve("the data", facts) == (RANK, None, None)


def test_the_length_says_how_many_batches_samplers_have():
    facts = part_facts(loader(batch_size=8), {}, AUTO, 2, "20 samples")
    assert facts["length"] == "20 samples, 3 batches"
    assert part_facts(DATA, {}, AUTO, 2, "20 samples")["length"] == "20 samples"
    assert part_facts([X], {}, AUTO, 2, None)["length"] == "a list"


@pytest.mark.parametrize("indices", [lambda: 3, None, "text", [], [[1], 2], torch.ones(2, 2)])
def test_indices_of_samplers_that_are_no_indices(indices):
    sampler = Of(DATA)
    sampler.num_replicas, sampler.indices = 1, indices
    one = loader(sampler=sampler)
    assert part_facts(one, {}, AUTO, 2, None)["indices"] is None
