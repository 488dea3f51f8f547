import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from fitkit.core.errors import ConfigurationError, DataError
from fitkit.data.in_memory import InMemorySource
from fitkit.data.iterables import IterableSource, StatefulSource
from fitkit.data.make_source import DEFAULT_BATCH_SIZE, batch_size_of, make_source
from fitkit.data.map_style import MapStyleSource
from fitkit.data.spec import DataSpec


class Squares(Dataset):
    def __init__(self, size=70):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor(index)


class Duck:
    """Looks like a map-style data set."""

    __len__ = Squares.__len__
    __getitem__ = Squares.__getitem__
    size = 70


class FetchingDuck(Duck):
    """As data sets of Hugging Face: iterable over samples, and fetched in batches."""

    def __iter__(self):
        raise AssertionError("samples are no batches")

    def __getitems__(self, indices):
        return [torch.tensor(index) for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(70))


def make(data, *, training=True, in_order=False, seed=1, **settings):
    spec = DataSpec(data, **settings)
    return make_source(spec, seed=seed, dtype=torch.float32, training=training, in_order=in_order)


def samples(source, epoch=0):
    return torch.cat([torch.as_tensor(batch).flatten() for batch in source.iterate(epoch)]).tolist()


TENSOR = torch.arange(70)
LOADER = DataLoader(Squares(), 7)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (TENSOR, InMemorySource),
        (np.arange(70), InMemorySource),
        ((TENSOR, np.arange(70)), InMemorySource),
        ({"x": TENSOR}, InMemorySource),
        (TensorDataset(TENSOR), InMemorySource),
        (Squares(), MapStyleSource),
        (Duck(), MapStyleSource),
        (FetchingDuck(), MapStyleSource),
        (LOADER, MapStyleSource),
        (DataLoader(Stream(), 7), IterableSource),
        (type("Mine", (DataLoader,), {})(Squares(), 7), IterableSource),
        (StatefulDataLoader(Squares(), 7), StatefulSource),
        (Stream(), IterableSource),
        ([TENSOR[:35], TENSOR[35:]], IterableSource),
        (iter([TENSOR]), IterableSource),
        (torch.nn.ParameterList([TENSOR.float()]), StatefulSource),
    ],
)
def test_kinds_of_data(data, kind):
    source = make(data)
    assert type(getattr(source, "batches", source)) is kind


@pytest.mark.parametrize("data", [TENSOR, TensorDataset(TENSOR), Squares(), Duck(), FetchingDuck()])
def test_what_fitkit_batches_is_shuffled_for_training_only(data):
    def read(**settings):
        source = make(data, **settings)
        batches = [b[0] if isinstance(b, (tuple, list)) else b for b in source.iterate(0)]
        assert len(batches[0]) == DEFAULT_BATCH_SIZE == 32
        assert source.num_batches == len(batches) == 3
        return torch.cat(batches).tolist()

    in_order = list(range(70))
    assert sorted(read()) == in_order != read()
    assert read(shuffle=False) == in_order
    assert read(training=False) == in_order
    assert sorted(read(training=False, shuffle=True)) == in_order != read(shuffle=True)
    assert read(in_order=True) == in_order
    assert read(in_order=True, shuffle=True) == in_order


def test_in_memory_and_map_style_data_have_the_same_order():
    assert samples(make(TENSOR), 3) == samples(make(Squares()), 3)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_a_batch_size_must_be_a_count(size):
    with pytest.raises(ConfigurationError, match="batch_size must be a whole number of at least 1"):
        make(TENSOR, batch_size=size)


@pytest.mark.parametrize("data", ["text", b"bytes", 3, None, {"a": 1}, {}, print])
def test_what_is_no_data(data):
    with pytest.raises(
        DataError, match=r"data must be arrays or tensors, a Dataset, .* received a"
    ):
        make(data)


def test_a_tuple_of_an_array_and_something_else_is_no_iterable_of_batches():
    with pytest.raises(
        DataError, match=r"arrays or tensors only, received a tensor of shape .*, a li"
    ):
        make((TENSOR, [1, 2, 3]))


@pytest.mark.parametrize("data", [LOADER, [TENSOR], iter([TENSOR])])
@pytest.mark.parametrize(
    "settings", [{"batch_size": 3}, {"shuffle": False}, {"loader_kwargs": {"num_workers": 2}}]
)
def test_ready_batches_take_no_settings(data, settings):
    name = next(iter(settings.get("loader_kwargs", settings)))
    with pytest.raises(ConfigurationError, match=f"{name} cannot be set for .*pass the Dataset"):
        make(data, **settings)


def test_arrays_take_no_settings_of_a_loader():
    with pytest.raises(ConfigurationError, match="takes no collate_fn, sampler: pass a Dataset"):
        make(TENSOR, loader_kwargs={"sampler": None, "collate_fn": None})
    assert make(TENSOR, loader_kwargs={"drop_last": True, "num_workers": 2}).num_batches == 2


def test_a_stream_cannot_be_shuffled_from_outside():
    with pytest.raises(ConfigurationError, match="IterableDataset determines its own order"):
        make(Stream(), shuffle=True)
    assert samples(make(Stream(), batch_size=9, shuffle=False)) == list(range(70))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"shuffle": True, "loader_kwargs": {"sampler": SequentialSampler(range(70))}},
            "sampler overrides shuffle: pass only one",
        ),
        (
            {"batch_size": 3, "shuffle": True, "loader_kwargs": {"batch_sampler": [[0, 1]]}},
            "batch_sampler overrides shuffle and batch_size",
        ),
    ],
)
def test_settings_that_a_sampler_would_overrule_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(Squares(), **settings)


def test_a_sampler_that_is_given_is_used_and_none_is_none():
    sampler = [5, 4, 3]
    assert samples(make(Squares(), loader_kwargs={"sampler": sampler})) == sampler
    assert samples(make(Squares(), loader_kwargs={"batch_sampler": [[9, 8], [7]]})) == [9, 8, 7]
    shuffled = samples(make(Squares(), loader_kwargs={"sampler": None, "batch_sampler": None}))
    assert shuffled == samples(make(Squares())) != list(range(70))


def test_a_generator_that_is_given_decides_the_order():
    def read(seed, **settings):
        generator = torch.Generator().manual_seed(seed)
        return samples(make(Squares(), loader_kwargs={"generator": generator}, **settings))

    torch_order = torch.cat(
        list(DataLoader(Squares(), 32, shuffle=True, generator=torch.Generator().manual_seed(4)))
    ).tolist()
    assert read(4) == torch_order
    assert read(5) != torch_order
    assert read(4, shuffle=False) == list(range(70))


def test_loader_settings_are_not_changed_and_reach_the_loader():
    settings = {"drop_last": True, "collate_fn": lambda items: torch.stack(items) + 100}
    before = dict(settings)
    source = make(Squares(), batch_size=20, shuffle=False, loader_kwargs=settings)
    assert samples(source) == list(range(100, 160))
    assert settings == before


def test_a_data_set_without_length_is_an_error():
    class Endless(Dataset):
        def __getitem__(self, index):
            return torch.tensor(index)

    with pytest.raises(DataError, match="Endless has no length: define __len__, or make it an It"):
        make(Endless())


# ---- reading in order, whatever the loader says


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Squares(), 7),
        DataLoader(Squares(), 9, shuffle=True, drop_last=True),
        DataLoader(Squares(), 9, drop_last=True),
        DataLoader(Squares(), 9, sampler=[1, 2, 3]),
        DataLoader(Squares(), batch_size=None, shuffle=True),
        DataLoader(Squares(), batch_sampler=[[1, 2], [3]]),
        DataLoader(
            Squares(), batch_sampler=BatchSampler(RandomSampler(range(70)), 9, drop_last=True)
        ),
        DataLoader(
            TENSOR, sampler=BatchSampler(RandomSampler(range(70)), 9, True), batch_size=None
        ),
        StatefulDataLoader(Squares(), 9, shuffle=True, drop_last=True),
        DataLoader(Stream(), 9),
    ],
)
def test_a_loader_is_read_whole_and_in_order(loader):
    source = make(loader, in_order=True)
    assert samples(source) == list(range(70))
    assert samples(source) == list(range(70)), "a second pass too"


def test_reading_in_order_keeps_the_collation():
    loader = DataLoader(Squares(), 7, shuffle=True, collate_fn=lambda b: torch.stack(b) + 100)
    assert samples(make(loader, in_order=True)) == list(range(100, 170))


@pytest.mark.parametrize(
    "settings",
    [
        {"loader_kwargs": {"drop_last": True}},
        {"loader_kwargs": {"sampler": [3, 2]}},
        {"loader_kwargs": {"batch_sampler": [[3, 2]]}},
        {"shuffle": True, "loader_kwargs": {"generator": torch.Generator()}},
    ],
)
def test_a_data_set_is_read_whole_and_in_order(settings):
    assert samples(make(Squares(), in_order=True, **settings)) == list(range(70))


def test_override_replaces_only_what_is_given():
    spec = DataSpec(TENSOR, batch_size=3, shuffle=False)
    assert vars(spec.override(batch_size=None, shuffle=None)) == vars(spec)
    changed = spec.override(batch_size=5, shuffle=True)
    assert (changed.batch_size, changed.shuffle) == (5, True)
    assert (spec.batch_size, spec.shuffle) == (3, False)


# ---- what only speed depends on


class Hearing(Squares):
    def set_epoch(self, epoch):
        pass


def settings_of(data, device, **loader_kwargs):
    spec = DataSpec(data, loader_kwargs=loader_kwargs)
    settings = {"seed": 1, "dtype": torch.float32, "training": True}
    loader = make_source(spec, **settings, device=torch.device(device))._user_loader
    return loader.pin_memory, loader.persistent_workers


def test_loaders_made_for_an_accelerator_pin_memory_and_keep_their_workers():
    assert settings_of(Squares(), "cpu", num_workers=2) == (False, False)
    assert settings_of(Squares(), "mps") == (False, False)
    assert settings_of(Squares(), "cuda") == (True, False)
    assert settings_of(Squares(), "cuda", num_workers=2) == (True, True)
    assert settings_of(Hearing(), "cuda", num_workers=2) == (True, False)


def test_a_loader_of_an_iterable_data_set_pins_memory_too():
    settings = {"seed": 1, "dtype": torch.float32, "training": True}
    for device, is_pinned in (("cpu", False), ("cuda", True)):
        source = make_source(DataSpec(Stream()), **settings, device=torch.device(device))
        loader = source.batches._batches
        assert loader.pin_memory is is_pinned
        assert not loader.persistent_workers


@pytest.mark.parametrize(
    ("device", "given", "is_pinned"),
    [("cpu", {}, False), ("cuda", {}, True), ("cuda", {"pin_memory": False}, False)],
)
def test_batches_of_data_in_memory_are_pinned(monkeypatch, device, given, is_pinned):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda one: pinned.append(one) or one)
    settings = {"seed": 1, "dtype": torch.float32, "training": True}
    data = {"x": torch.arange(6.0), "labels": torch.arange(6)}
    for arrays in (data, tuple(data.values())):
        pinned.clear()
        spec = DataSpec(arrays, batch_size=4, loader_kwargs=given)
        batches = list(make_source(spec, **settings, device=torch.device(device)).iterate(0))
        assert [len(one) for one in pinned] == ([4, 4, 2, 2] if is_pinned else [])
        assert len(batches) == 2


def test_data_that_is_on_the_device_is_not_pinned(monkeypatch):
    def fail(tensor):
        raise AssertionError("only memory of the host can be pinned")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    spec = DataSpec(torch.ones(6, device="meta"), batch_size=4)
    settings = {"seed": 1, "dtype": torch.float32, "training": False}
    assert len(list(make_source(spec, **settings, device=torch.device("cuda")).iterate(0))) == 2


def test_what_the_user_says_of_them_holds():
    given = {"num_workers": 2, "pin_memory": False, "persistent_workers": False}
    assert settings_of(Squares(), "cuda", **given) == (False, False)
    own = DataLoader(Squares(), 7)
    spec = DataSpec(own)
    source = make_source(
        spec, seed=1, dtype=torch.float32, training=True, device=torch.device("cuda")
    )
    assert source._user_loader is own
    assert not own.pin_memory


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DataSpec(Squares()), DEFAULT_BATCH_SIZE),
        (DataSpec(Squares(), 8), 8),
        (DataSpec(torch.zeros(4, 1), global_batch_size=10), 5),
        (DataSpec(DataLoader(Squares(), batch_size=7)), 7),
        (DataSpec(DataLoader(Squares(), batch_sampler=[[0], [1, 2]])), None),
        (DataSpec(iter([torch.zeros(2, 1)])), None),
    ],
)
def test_the_batch_size_of_each_of_two_processes(spec, expected):
    assert batch_size_of(spec, 2) == expected
