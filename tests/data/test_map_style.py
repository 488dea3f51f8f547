from itertools import islice

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fitkit.data.epoch_sampler import EpochSampler
from fitkit.data.map_style import MapStyleSource
from fitkit.data.rank_split import RankSplit
from fitkit.runtime.rng import get_host_state

SIZE = 10


def streams():
    python, numpy, torchs = get_host_state()
    return python, numpy, torchs.tolist()


LOADERS = {
    "sequential": lambda kit: {},
    "shuffled": lambda kit: {"shuffle": True},
    "drop_last": lambda kit: {"shuffle": True, "drop_last": True},
    "epoch sampler": lambda kit: {"sampler": EpochSampler(SIZE, 1)},
    "replacement": lambda kit: {
        "sampler": RandomSampler(range(SIZE), replacement=True, num_samples=45)
    },
    "subset": lambda kit: {"sampler": SubsetRandomSampler(range(7))},
    "weighted": lambda kit: {"sampler": WeightedRandomSampler([1.0] * SIZE, 12)},
    "late": lambda kit: {"sampler": kit.LateSampler(SIZE)},
    "late in batches": lambda kit: {
        "batch_size": 1,
        "batch_sampler": BatchSampler(kit.LateSampler(SIZE), 3, drop_last=False),
    },
    "unbatched": lambda kit: {"batch_size": None, "shuffle": True},
    "noisy collation": lambda kit: {"shuffle": True, "collate_fn": kit.noisy_collate},
    "own generator": lambda kit: {"shuffle": True, "generator": torch.Generator().manual_seed(5)},
}


def source_of(kit, name, dataset=None, **kwargs):
    settings = {"batch_size": 3, **LOADERS[name](kit), **kwargs}
    return MapStyleSource(
        DataLoader(kit.Augmented(SIZE) if dataset is None else dataset, **settings), 7
    )


def start_at(kit, name, epoch, start, **kwargs):
    """A fresh source where another one was cut."""
    cut = source_of(kit, name)
    for earlier in range(epoch):
        list(cut.iterate(earlier))
    list(islice(cut.iterate(epoch), start))
    source = source_of(kit, name, **kwargs)
    source.load_state_dict(cut.state_dict())
    return source


@pytest.mark.parametrize("name", LOADERS)
def test_a_cut_pass_and_the_next_are_those_of_the_whole_run(name, kit):
    whole = source_of(kit, name)
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    assert expected[0] != expected[1]
    assert len(expected[0]) == whole.num_batches
    before = streams()
    for epoch in (0, 1):
        for start in range(len(expected[epoch]) + 1):
            torch.rand(1)  # what the main streams do must not matter
            source = start_at(kit, name, epoch, start)
            assert kit.flat(source.iterate(epoch, start)) == expected[epoch][start:]
            assert kit.flat(source.iterate(epoch + 1)) == expected[epoch + 1]
    torch.rand(1)
    assert streams()[:2] == before[:2], "the main streams must not be drawn from"


@pytest.mark.parametrize("name", LOADERS)
def test_the_main_streams_stay_where_they_are(name, kit):
    source, before = source_of(kit, name), streams()
    for _ in source.iterate(0):
        assert streams() == before
    assert streams() == before


@pytest.mark.parametrize(
    "name", ["shuffled", "late", "noisy collation", "own generator", "unbatched"]
)
def test_workers_give_the_same_batches_from_any_start(name, kit):
    whole = source_of(kit, name)
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(2)]
    before = streams()
    with_workers = source_of(kit, name, num_workers=2)
    assert kit.flat(with_workers.iterate(0)) == expected[0]
    assert streams() == before
    source = start_at(kit, name, 1, 2, num_workers=2)
    assert kit.flat(source.iterate(1, 2)) == expected[1][2:]


@pytest.mark.parametrize("late_start", [0, 1])
def test_persistent_workers_left_in_the_middle_begin_the_next_pass_afresh(late_start, kit):
    whole = source_of(kit, "shuffled")
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    source = source_of(kit, "shuffled", num_workers=2, persistent_workers=True)
    assert kit.flat(islice(source.iterate(0), 1)) == expected[0][:1]
    assert kit.flat(source.iterate(1, late_start)) == expected[1][late_start:]
    assert kit.flat(source.iterate(2)) == expected[2]


def test_skipped_samples_are_not_loaded(kit):
    dataset = kit.Augmented(SIZE)
    source = source_of(kit, "sequential", dataset)
    list(source.iterate(0, 2))
    assert dataset.loaded == [6, 7, 8, 9]
    dataset.loaded.clear()
    assert list(source.iterate(0, 4)) == []
    assert list(source.iterate(0, 9)) == []
    assert dataset.loaded == []


def test_nothing_happens_before_the_first_batch_is_asked_for(kit):
    dataset = kit.Augmented(SIZE)
    source = source_of(kit, "own generator", dataset)
    saved = source.state_dict()
    source.load_state_dict(saved)
    source.iterate(0)
    waiting = source.state_dict()
    assert waiting["now"] is saved["now"], "a state that waits is what the next save must hold"


def test_augmentation_differs_between_epochs_and_positions(kit):
    source = source_of(kit, "sequential")
    numbers = torch.cat([*source.iterate(0), *source.iterate(1)])[:, 1:]
    assert len(numbers.unique()) == numbers.numel()


def test_the_seed_decides(kit):
    loaders = [DataLoader(kit.Augmented(SIZE), 3, shuffle=True) for _ in range(3)]
    one, same, other = (
        kit.flat(MapStyleSource(loader, seed).iterate(0))
        for loader, seed in zip(loaders, (1, 1, 2), strict=True)
    )
    assert one == same != other


# ---- the user's generators


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_generator_gives_the_order_that_torch_gives(workers, kit):
    data = TensorDataset(torch.arange(SIZE))

    def loader():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(data, 3, shuffle=True, generator=generator, num_workers=workers)

    ours, torchs = MapStyleSource(loader(), 7), loader()
    for epoch in range(3):
        assert kit.flat(ours.iterate(epoch)) == kit.flat(torchs)


@pytest.mark.parametrize("cut", [0, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_generator_of_a_nested_sampler_is_found(cut, workers, kit):
    def make():
        sampler = RandomSampler(range(SIZE), generator=torch.Generator().manual_seed(1))
        batches = BatchSampler(sampler, 3, drop_last=False)
        loader = DataLoader(
            torch.arange(SIZE), sampler=batches, batch_size=None, num_workers=workers
        )
        return MapStyleSource(loader, 0)

    whole = make()
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    one = make()
    list(one.iterate(0))
    list(islice(one.iterate(1), cut))
    other = make()
    other.load_state_dict(one.state_dict())
    assert kit.flat(other.iterate(1, cut)) == expected[1][cut:]
    assert kit.flat(other.iterate(2)) == expected[2]


def test_a_pass_that_was_left_early_for_good_does_not_disturb_the_next(kit):
    one = source_of(kit, "own generator")
    list(islice(one.iterate(0), 2))
    other = source_of(kit, "own generator")
    other.load_state_dict(one.state_dict())
    assert kit.flat(other.iterate(1)) == kit.flat(one.iterate(1))


def test_a_pass_repeated_under_the_same_number_goes_on_with_the_generator(kit):
    one = source_of(kit, "own generator")
    list(one.iterate(0))
    other = source_of(kit, "own generator")
    other.load_state_dict(one.state_dict())
    assert kit.flat(other.iterate(0)) == kit.flat(one.iterate(0))


def test_generators_that_are_gone_are_warned_about(kit):
    saved = source_of(kit, "own generator").state_dict()
    other = source_of(kit, "shuffled")
    with pytest.warns(UserWarning, match="states of 1 generators of the loader, which now has 0"):
        other.load_state_dict(saved)
    assert len(list(other.iterate(0))) == 4


def test_without_generators_there_is_only_the_size_of_batches(kit):
    assert source_of(kit, "shuffled").state_dict() == {"stride": {"batch": 0, "item": 0, "step": 3}}


# ---- kinds of loaders


def test_a_list_from_an_unbatched_sampler_reaches_the_data_set_whole(kit):
    class Table:
        def __len__(self):
            return SIZE

        def __getitem__(self, index):
            assert isinstance(index, list)
            return torch.tensor(index)

    sampler = BatchSampler(SequentialSampler(range(SIZE)), 4, drop_last=False)
    source = MapStyleSource(DataLoader(Table(), sampler=sampler, batch_size=None), 0)
    assert kit.flat(source.iterate(0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert kit.flat(source.iterate(0, 2)) == [[8, 9]]


def test_a_data_set_that_fetches_batches_is_asked_once_a_batch(kit):
    class Fast(kit.Augmented):
        def __getitems__(self, indices):
            self.loaded.append(list(indices))
            return [torch.rand(1) for _ in indices]

    dataset = Fast(SIZE)
    source = source_of(kit, "sequential", dataset)
    whole = kit.flat(source.iterate(0))
    assert dataset.loaded == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert kit.flat(source.iterate(0, 2)) == whole[2:]
    subset = source_of(kit, "sequential", Subset(Fast(SIZE), range(4)))
    assert len(list(subset.iterate(0))) == 2


@pytest.mark.parametrize("indices", [torch.tensor([1, 2]), (1, 2)])
def test_batch_samplers_may_yield_other_sequences(indices, kit):
    loader = DataLoader(list(range(SIZE)), batch_sampler=[indices, indices])
    assert kit.flat(MapStyleSource(loader, 0).iterate(0)) == [[1, 2], [1, 2]]
    assert kit.flat(MapStyleSource(loader, 0).iterate(0, 1)) == [[1, 2]]


def test_random_collation_over_plain_tensors_is_seeded_too(kit, draw):
    def make(workers):
        data = TensorDataset(torch.arange(SIZE))
        return MapStyleSource(
            DataLoader(data, 3, collate_fn=kit.noisy_collate, num_workers=workers), 1
        )

    before = streams()
    whole = kit.flat(make(0).iterate(0))
    assert streams() == before
    assert kit.flat(make(0).iterate(0, 2)) == whole[2:]
    assert kit.flat(make(2).iterate(0)) == whole


def test_set_epoch_is_called_wherever_it_is(kit):
    heard = []

    class Hearing(kit.LateSampler):
        def set_epoch(self, epoch):
            heard.append(epoch)

    class Data(kit.Augmented):
        def set_epoch(self, epoch):
            heard.append(("data", epoch))

    loader = DataLoader(Data(SIZE), 3, sampler=Hearing(SIZE))
    list(MapStyleSource(loader, 0).iterate(5))
    assert heard == [("data", 5), 5]


def test_a_sampler_without_length(kit):
    class Endless:
        def __iter__(self):
            return iter([0, 1, 2])

    source = MapStyleSource(DataLoader(kit.Augmented(SIZE), 2, sampler=Endless()), 0)
    assert source.num_batches is None
    assert len(list(source.iterate(0))) == 2


def test_an_error_in_the_data_set_propagates_and_restores_the_streams(kit):
    class Broken(kit.Augmented):
        def __getitem__(self, index):
            raise ValueError("bad sample")

    source = source_of(kit, "sequential", Broken(SIZE))
    before = streams()
    with pytest.raises(ValueError, match="bad sample"):
        next(source.iterate(0))
    assert streams() == before


def test_ranks_take_their_parts_of_batches_in_order():
    data = TensorDataset(torch.arange(8.0))
    loader = DataLoader(data, batch_size=2, num_workers=2, in_order=False)
    for size, expected in ((1, False), (2, True)):
        assert MapStyleSource(loader, 0, RankSplit(0, size))._loader.in_order is expected
