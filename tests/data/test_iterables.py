import random
from itertools import count, islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from fitkit.core.errors import CheckpointError, DataError
from fitkit.data.iterables import IterableSource, StatefulSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot seek.*:UserWarning")


class Noisy:
    """An iterable without length that draws from every host stream, anew in each pass."""

    def __init__(self, size=5):
        self.size = size

    def __iter__(self):
        for index in range(self.size):
            yield torch.tensor(
                [index, random.random(), np.random.rand(), float(torch.rand(()))],
                dtype=torch.float64,
            )


class NoisyDataset(Noisy, IterableDataset):
    pass


class SubclassedLoader(DataLoader):
    pass


def noisy_loader():
    return DataLoader(NoisyDataset(8), batch_size=2)


def generated_loader():
    data = TensorDataset(torch.arange(10))
    return SubclassedLoader(data, 3, shuffle=True, generator=torch.Generator().manual_seed(2))


MAKERS = [Noisy, noisy_loader, generated_loader]


@pytest.mark.parametrize("make", MAKERS)
def test_a_cut_pass_and_the_next_are_those_of_the_whole_run(make, kit):
    whole = IterableSource(make(), 3)
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    assert expected[0] != expected[1]
    for start in range(len(expected[1]) + 1):
        cut = IterableSource(make(), 3)
        list(cut.iterate(0))
        list(islice(cut.iterate(1), start))
        torch.rand(1)
        source = IterableSource(make(), 3)
        saved = cut.state_dict()
        source.load_state_dict(saved)
        assert source.state_dict() is saved, "a state that waits is what the next save must hold"
        assert kit.flat(source.iterate(1, start)) == expected[1][start:]
        assert kit.flat(source.iterate(2)) == expected[2]


@pytest.mark.parametrize("make", MAKERS)
def test_the_main_streams_stay_where_they_are(make, draw):
    expected = draw()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    list(IterableSource(make(), 3).iterate(0))
    assert draw() == expected


def test_a_replay_is_announced_with_its_length():
    source = IterableSource(Noisy(), 0)
    with pytest.warns(UserWarning, match="Noisy cannot seek: 3 batches are read again"):
        list(source.iterate(0, 3))


def test_data_that_ends_before_the_position_is_an_error():
    with pytest.raises(DataError, match="Noisy ended 2 batches before the position"):
        list(IterableSource(Noisy(5), 0).iterate(0, 7))
    assert list(IterableSource(Noisy(5), 0).iterate(0, 5)) == []


@pytest.mark.parametrize(("batches", "length"), [([1, 2], 2), (Noisy(), None), (iter([]), None)])
def test_length(batches, length):
    assert IterableSource(batches, 0).num_batches == length


def test_set_epoch_reaches_the_iterable_and_the_data_set_of_a_loader():
    heard = []

    class Hearing(NoisyDataset):
        def set_epoch(self, epoch):
            heard.append(epoch)

    list(IterableSource(Hearing(), 0).iterate(4))
    list(IterableSource(DataLoader(Hearing()), 0).iterate(5))
    assert heard == [4, 5]


# ---- iterators of a single pass


def test_an_iterator_goes_on_over_epochs_and_restarts():
    whole = IterableSource(iter(range(10)), 0)
    assert list(islice(whole.iterate(0), 3)) == [0, 1, 2]
    assert list(islice(whole.iterate(1), 2)) == [3, 4]
    inside, between = IterableSource(iter(range(10)), 0), IterableSource(iter(range(10)), 0)
    inside.load_state_dict(whole.state_dict())
    between.load_state_dict(whole.state_dict())
    assert next(inside.iterate(1, 1)) == 4  # the second batch of that pass
    assert list(between.iterate(2)) == [5, 6, 7, 8, 9]
    assert list(whole.iterate(2)) == [5, 6, 7, 8, 9]


def test_a_restart_of_a_restart_of_an_iterator():
    state = {}
    seen = []
    for epoch in range(3):
        source = IterableSource(iter(range(9)), 0)
        source.load_state_dict(state)
        seen += islice(source.iterate(epoch), 3)
        state = source.state_dict()
    assert seen == list(range(9))


def test_an_iterator_that_is_used_up_gives_nothing():
    source = IterableSource(iter([1]), 0)
    assert list(source.iterate(0)) == [1]
    assert list(source.iterate(1)) == []


def test_an_iterator_cannot_be_brought_back():
    source = IterableSource(count(), 0)
    list(islice(source.iterate(0), 2))
    saved = source.state_dict()
    list(islice(source.iterate(1), 3))
    source.load_state_dict(saved)
    with pytest.raises(DataError, match=r"can be read only once and is at batch 5, after .* 2"):
        next(source.iterate(1))


def test_an_iterator_that_is_too_short_for_the_checkpoint():
    source = IterableSource(iter(range(5)), 0)
    list(islice(source.iterate(0), 4))
    other = IterableSource(iter(range(2)), 0)
    other.load_state_dict(source.state_dict())
    with pytest.raises(DataError, match=r"range_iterator ended 2 batches before"):
        list(other.iterate(0, 4))


# ---- loaders with a state of their own


class OwnState:
    """Counts its passes, which decide its order, and goes on after a load where it was."""

    def __init__(self, size=4, length=True):
        self.size, self.passes, self.position = size, 0, 0
        if length:
            self.__class__ = type("Sized", (OwnState,), {"__len__": lambda self: self.size})

    def __iter__(self):
        begin, self.position = self.position, 0
        for index in range(begin, self.size):
            self.position = index + 1
            yield torch.tensor([self.passes, index, torch.rand(())])
        self.passes, self.position = self.passes + 1, 0

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state):
        self.passes, self.position = state["passes"], state["position"]


def test_a_loader_with_a_counter_of_its_own_at_every_cut(kit):
    whole = StatefulSource(OwnState(), 3)
    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    assert [[batch[0] for batch in batches] for batches in expected] == [[0] * 4, [1] * 4, [2] * 4]
    for start in range(5):
        cut = StatefulSource(OwnState(), 3)
        list(cut.iterate(0))
        list(islice(cut.iterate(1), start))
        source = StatefulSource(OwnState(), 3)
        source.load_state_dict(cut.state_dict())
        assert kit.flat(source.iterate(1, start)) == expected[1][start:]
        assert kit.flat(source.iterate(2)) == expected[2]


class Resumable(OwnState):
    """Resumes where it was only in the first iteration after a load; others begin anew."""

    def __init__(self):
        super().__init__(length=False)
        self.begin = 0

    def __iter__(self):
        self.position, self.begin = self.begin, 0
        return super().__iter__()

    def load_state_dict(self, state):
        self.passes, self.begin = state["passes"], state["position"]


@pytest.mark.parametrize("make", [OwnState, Resumable])
def test_a_pass_left_for_good_is_followed_by_what_follows_without_a_restart(make, kit):
    one = StatefulSource(make(), 3)
    list(one.iterate(0))
    list(islice(one.iterate(1), 2))
    inside, after = StatefulSource(make(), 3), StatefulSource(make(), 3)
    inside.load_state_dict(one.state_dict())
    after.load_state_dict(one.state_dict())
    assert [batch[:2] for batch in kit.flat(inside.iterate(1, 2))] == [[1, 2], [1, 3]]
    assert kit.flat(after.iterate(2)) == kit.flat(one.iterate(2))


class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), torch.rand(())], dtype=torch.float64)


def torchdata_loader(kind):
    torch.seed()  # each process has another generator to begin with, unless it is given
    kwargs = {
        "sequential": {"dataset": Draws()},
        "shuffled": {"dataset": Draws(), "shuffle": True},
        "generator": {
            "dataset": Draws(),
            "shuffle": True,
            "generator": torch.Generator().manual_seed(1),
        },
        "workers": {"dataset": TensorDataset(torch.arange(10)), "shuffle": True, "num_workers": 1},
        "workers, generator": {
            "dataset": TensorDataset(torch.arange(10)),
            "shuffle": True,
            "num_workers": 1,
            "generator": torch.Generator().manual_seed(1),
        },
        "iterable": {"dataset": NoisyDataset(10)},
    }[kind]
    return StatefulDataLoader(batch_size=3, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cuts"),
    [
        ("sequential", [(0, 0), (1, 0), (1, 2), (1, 4)]),
        ("shuffled", [(0, 0), (0, 1), (1, 0), (1, 2), (1, 3), (1, 4)]),
        ("generator", [(0, 0), (0, 1), (1, 0), (1, 2), (1, 3), (1, 4)]),
        ("workers", [(1, 0), (1, 2), (1, 4)]),
        ("workers, generator", [(1, 0), (1, 2), (1, 4)]),
        ("iterable", [(0, 0), (1, 0), (1, 2), (1, 4)]),
    ],
)
def test_torchdatas_loader_at_every_cut(kind, cuts, kit, tmp_path):
    whole = StatefulSource(torchdata_loader(kind), 3)
    list(whole.iterate(-1))  # so that the state to begin from is not trivial
    begin = whole.state_dict()

    def make(state):
        source = StatefulSource(torchdata_loader(kind), 3)
        torch.save(state, tmp_path / "state.pt")
        source.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        return source

    expected = [kit.flat(whole.iterate(epoch)) for epoch in range(3)]
    assert len(expected[0]) == 4
    for epoch, start in cuts:
        cut = make(begin)
        assert [kit.flat(cut.iterate(earlier)) for earlier in range(epoch)] == expected[:epoch]
        list(islice(cut.iterate(epoch, 0), start))
        source = make(cut.state_dict())
        assert kit.flat(source.iterate(epoch, start)) == expected[epoch][start:], (epoch, start)
        following = kit.flat(source.iterate(epoch + 1))
        if epoch + 1 < len(expected):
            assert following == expected[epoch + 1], (epoch, start)


@pytest.mark.parametrize("kind", ["shuffled", "generator"])
def test_a_pass_that_steps_per_epoch_cut_is_followed_by_a_whole_one(kind, kit):
    one = StatefulSource(torchdata_loader(kind), 3)
    list(islice(one.iterate(0), 2))
    other = StatefulSource(torchdata_loader(kind), 3)
    other.load_state_dict(one.state_dict())
    following = kit.flat(one.iterate(1))
    assert len(following) == 4
    assert kit.flat(other.iterate(1)) == following


def test_saving_before_the_first_pass_does_not_begin_it(draw):
    source = StatefulSource(torchdata_loader("shuffled"), 3)
    torch.manual_seed(0)
    expected = draw()[2]
    torch.manual_seed(0)
    assert source.state_dict()["loader"] is None
    assert draw()[2] == expected


def test_a_state_that_waits_is_what_the_next_save_holds():
    source = StatefulSource(OwnState(), 0)
    state = {"epoch": 1, "loader": {"passes": 1, "position": 2}, "streams": {}, "generators": {}}
    source.load_state_dict(state)
    assert source.state_dict() == state


def test_the_main_streams_are_not_drawn_from(draw):
    source = StatefulSource(torchdata_loader("shuffled"), 3)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = draw()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    list(source.iterate(0))
    list(islice(source.iterate(1), 1))
    source.load_state_dict(source.state_dict())
    list(source.iterate(1, 1))
    source.load_state_dict(source.state_dict())
    list(source.iterate(2))
    assert draw() == expected


def test_a_state_that_the_loader_refuses_is_a_clear_error():
    one = StatefulSource(torchdata_loader("shuffled"), 3)
    next(one.iterate(0))
    other = StatefulSource(torchdata_loader("workers"), 3)
    other.load_state_dict(one.state_dict())
    with pytest.raises(
        CheckpointError, match=r"StatefulDataLoader rejects the position .*same num_w"
    ):
        next(other.iterate(0, 1))


@pytest.mark.parametrize(("length", "expected"), [(True, 4), (False, None)])
def test_length_of_a_stateful_loader(length, expected):
    assert StatefulSource(OwnState(length=length), 0).num_batches == expected
