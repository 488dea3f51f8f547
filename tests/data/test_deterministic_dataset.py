"""What is taken not to draw cannot; what might is not taken so."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from fitkit.data.deterministic_dataset import is_deterministic, is_deterministic_collate
from fitkit.data.map_style import MapStyleSource


class Rows(Dataset):
    def __init__(self):
        self.x, self.y, self.offset = torch.arange(10.0), np.arange(10), 0
        self.parts = [torch.zeros(10)]

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Named(Rows):
    def __getitem__(self, index):
        where = index + self.offset
        x = self.x[where] * 2
        return {"x": x, "y": self.y[where]}


class Fetching(Rows):
    def __getitem__(self, index):
        raise AssertionError("never used")

    def __getitems__(self, indices):
        return self.x[indices]


@pytest.mark.parametrize("kind", [Rows, Named, Fetching])
def test_indexing_what_the_data_set_holds_cannot_draw(kind):
    assert is_deterministic(kind())


class Calling(Rows):
    def __getitem__(self, index):
        return self.x[index] + torch.rand(())


class OfTensors(Rows):
    def __getitem__(self, index):
        return self.x[index].bernoulli()


class FromOutside(Rows):
    def __getitem__(self, index):
        return OUTSIDE[index]


class OfAList(Rows):
    def __getitem__(self, index):
        return self.parts[0][index]


class OfAProperty(Rows):
    @property
    def noise(self):
        return random.random()

    def __getitem__(self, index):
        return self.noise


class OfAnotherDataSet(Rows):
    def __init__(self):
        super().__init__()
        self.x = Calling()


class WithAttributesOfItsOwn(Rows):
    def __getattribute__(self, name):
        random.random()
        return object.__getattribute__(self, name)


class Closure(Rows):
    def __init__(self):
        super().__init__()

        class Here(Rows):
            def __getitem__(self, index):
                return rows[index]

        rows = Calling()
        self.__class__ = Here


class DrawingFetch(Rows):
    def __getitems__(self, indices):
        return torch.rand(len(indices))


OUTSIDE = Calling()


@pytest.mark.parametrize(
    "kind",
    [
        Calling,
        OfTensors,
        FromOutside,
        OfAList,
        OfAProperty,
        OfAnotherDataSet,
        WithAttributesOfItsOwn,
        Closure,
        DrawingFetch,
    ],
)
def test_whatever_could_reach_other_code_may_draw(kind):
    assert not is_deterministic(kind())


def test_a_method_or_array_put_on_the_instance_counts():
    patched = Fetching()
    patched.__getitems__ = lambda indices: torch.rand(len(indices))
    assert not is_deterministic(patched)
    objects = Rows()
    objects.y = np.array([Calling()] * 2, dtype=object)
    assert not is_deterministic(objects)


def test_collation():
    assert is_deterministic_collate(default_collate)
    assert is_deterministic_collate(default_convert)
    assert is_deterministic_collate(lambda batch: batch)
    assert not is_deterministic_collate(lambda batch: default_collate(batch))
    assert not is_deterministic_collate(torch.stack)


def test_a_data_set_that_begins_to_draw_in_a_later_epoch_is_seeded_there(kit):
    def make():
        dataset = Rows()
        dataset.y = torch.zeros(10)
        return dataset, MapStyleSource(DataLoader(dataset, 3), 0)

    (dataset, source), (other_dataset, other) = make(), make()
    assert len(list(source.iterate(0))) == 4
    dataset.x = other_dataset.x = Calling()
    before = torch.get_rng_state()
    whole = [x.tolist() for x, _ in source.iterate(1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [x.tolist() for x, _ in other.iterate(1, 2)] == whole[2:]
