from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from fitkit.core.errors import DataError
from fitkit.core.tree import iterate_leaves
from fitkit.data.epoch_sampler import epoch_order
from fitkit.data.in_memory import (
    ArrayRows,
    InMemorySource,
    as_tensors,
    is_in_memory,
    slice_samples,
    tensors_of,
    whole_tensors,
)

Named = namedtuple("Named", "x y")


def flat(batches):
    return [batch.tolist() for batch in batches]


@given(
    n=st.integers(0, 30),
    size=st.integers(1, 12),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
    start=st.integers(0, 35),
)
def test_any_pass_from_any_batch(n, size, drop_last, shuffle, epoch, start):
    source = InMemorySource(torch.arange(n), size, shuffle=shuffle, seed=1, drop_last=drop_last)
    whole = flat(source.iterate(epoch))
    assert flat(source.iterate(epoch, start)) == whole[start:]
    assert len(whole) == source.num_batches == (n // size if drop_last else -(-n // size))
    seen = [sample for batch in whole for sample in batch]
    assert len(seen) == (n // size * size if drop_last else n)
    assert len(set(seen)) == len(seen)
    assert all(len(batch) == size for batch in whole[:-1])
    if not shuffle:
        assert seen == list(range(len(seen)))


def test_epochs_are_shuffled_differently_and_alike_in_another_source():
    def make(seed):
        return InMemorySource(torch.arange(40), 8, shuffle=True, seed=seed)

    assert flat(make(1).iterate(0)) == flat(make(1).iterate(0))
    assert flat(make(1).iterate(0)) != flat(make(1).iterate(1))
    assert flat(make(1).iterate(0)) != flat(make(2).iterate(0))


@pytest.mark.parametrize("shuffle", [True, False])
def test_samples_stay_together_in_any_nesting(shuffle):
    x = torch.arange(10)
    source = InMemorySource(
        {"pair": Named(x, x * 2), "t": (x.float()[:, None], x)}, 3, shuffle=shuffle
    )
    for batch in source.iterate(0):
        assert type(batch["pair"]) is Named
        assert torch.equal(batch["pair"].x * 2, batch["pair"].y)
        assert torch.equal(batch["t"][0][:, 0].long(), batch["t"][1])


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_model_that_works_in_place_cannot_change_the_data(shuffle):
    data = torch.arange(6.0)
    for batch in InMemorySource(data, 2, shuffle=shuffle).iterate(0):
        batch.mul_(0)
    assert data.tolist() == [0, 1, 2, 3, 4, 5]


def test_reading_draws_from_no_stream(draw):
    torch.manual_seed(0)
    list(InMemorySource(torch.arange(9), 2, shuffle=True).iterate(3))
    after = draw()[2]
    torch.manual_seed(0)
    assert draw()[2] == after


def test_the_position_is_told_by_the_size_of_batches():
    source = InMemorySource(torch.arange(9), 2)
    assert source.state_dict() == {"stride": {"batch": 0, "item": 0, "step": 2}}
    source.load_state_dict({})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((torch.zeros(3), torch.zeros(4, 2)), r"received the shapes \(3,\), \(4, 2\)\. Cut"),
        (torch.tensor(1.0), r"received the shapes \(\)"),
        ((torch.zeros(3), torch.tensor(1.0)), r"\(3,\), \(\)"),
        ({}, "of no array at all"),
    ],
)
def test_arrays_must_share_their_first_dimension(tensors, message):
    with pytest.raises(DataError, match=message):
        InMemorySource(tensors, 2)


A, T = np.zeros(2), torch.zeros(2)


@pytest.mark.parametrize("data", [A, T, (A, T), Named(A, T), {"a": A, "b": (T, {"c": A})}])
def test_what_is_in_memory(data):
    assert is_in_memory(data)


@pytest.mark.parametrize("data", [(), {}, [A], (A, None), (A, [1]), {"a": 1}, None, "text", 3])
def test_what_is_not_in_memory(data):
    assert not is_in_memory(data)


@pytest.mark.parametrize(
    ("given_type", "expected"),
    [
        ("float16", torch.float32),
        ("float32", torch.float32),
        ("float64", torch.float32),
        ("longdouble", torch.float32),
        (">f8", torch.float32),
        ("int8", torch.int64),
        ("int32", torch.int64),
        (">i4", torch.int64),
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        ("uint32", torch.int64),
        ("bool", torch.bool),
        ("complex64", torch.complex64),
    ],
)
def test_types_of_arrays(given_type, expected):
    array = np.array([[0, 1], [1, 0]], dtype=given_type)
    tensor = as_tensors(array, torch.float32)
    assert tensor.dtype == expected
    assert tensor.to(torch.complex64).tolist() == [[0, 1], [1, 0]]


def test_floats_become_the_dtype_asked_for():
    assert as_tensors(np.zeros(2), torch.float64).dtype == torch.float64
    assert as_tensors((np.zeros(2), np.zeros(2)), torch.bfloat16)[1].dtype == torch.bfloat16


def test_bytes_stay_bytes_as_images_and_become_whole_numbers_as_labels():
    images = labels = np.zeros(2, dtype=np.uint8)
    x, y = as_tensors((images, labels), torch.float32)
    assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
    named = as_tensors({"image": images, "labels": labels}, torch.float32)
    assert (named["image"].dtype, named["labels"].dtype) == (torch.uint8, torch.int64)
    assert as_tensors(Named(images, labels), torch.float32).y.dtype == torch.uint8


def test_tensors_stay_as_they_are():
    tensor = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert as_tensors((tensor, tensor), torch.float32)[0] is tensor


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4)[::-1, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.frombuffer(b"\1\2", dtype=np.uint8),
        np.zeros((0, 3)),
    ],
)
def test_arrays_of_any_layout_are_taken_and_not_changed(array):
    before = array.copy()
    data = as_tensors(array, torch.float64)
    assert whole_tensors(data).tolist() == before.tolist()
    whole_tensors(data).add_(0)
    batches = [batch.add_(1) for batch in InMemorySource(data, 2).iterate(0)]
    assert [row for batch in batches for row in batch.tolist()] == (before + 1).tolist()
    if isinstance(data, torch.Tensor):
        data += 1
    if not array.flags.writeable:
        assert np.array_equal(array, before)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("kind", ["<f4", "<f8", "<f2", ">f8", ">i4", "u1", "?"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_map_of_a_file_is_read_like_an_array_and_never_written(tmp_path, mode, kind, shuffle):
    values = np.arange(24).reshape(8, 3).astype(kind)
    path = tmp_path / "x.npy"
    np.save(path, values)
    before = path.read_bytes()
    mapped = np.load(path, mmap_mode=mode)
    for view, plain in ((mapped, values), (mapped[1:6], values[1:6]), (mapped.T, values.T)):
        data = as_tensors((view, view), torch.float32)
        expected = as_tensors((plain.copy(), plain.copy()), torch.float32)
        assert isinstance(data[0], ArrayRows)
        sources = [InMemorySource(d, 2, shuffle=shuffle, seed=3) for d in (data, expected)]
        for found, right in zip(*(source.iterate(1) for source in sources), strict=True):
            for ours, plains in zip(found, right, strict=True):
                assert ours.dtype == plains.dtype
                assert torch.equal(ours, plains)
                ours.zero_()  # a model that works in place
    if mode == "r+":
        mapped.flush()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_read_only_array_is_not_copied_as_a_whole(dtype, tmp_path):
    array = np.zeros((1000, 100), dtype)
    array.flags.writeable = False
    for data in (array, np.broadcast_to(dtype(1), (10**9, 100))):
        source = InMemorySource(as_tensors(data, torch.float32), 4)
        assert source.num_samples == len(data)
        batch = next(source.iterate(0))
        assert batch.tolist() == data[:4].tolist()
        assert batch.dtype == torch.float32


def test_a_map_is_read_in_place_by_fit_and_predict(tmp_path):
    import fitkit

    x = np.random.default_rng(0).normal(size=(9, 2))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    results = []
    for data in (x, mapped):
        handler = fitkit.NNHandler(torch.nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_loss_fn(torch.nn.MSELoss())
        handler.fit((data, data[:, :1]), batch_size=4, validation_split=0.3, progress_bar=False)
        handler.summary(data)
        results.append(handler.predict(data, batch_size=4))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([None]), np.array(["2020"], dtype="datetime64[Y]")]
)
def test_arrays_of_other_things_are_refused(array):
    with pytest.raises(DataError, match=r"expected an array of numbers, received dtype .*encode"):
        as_tensors(array, torch.float32)


def test_take_keeps_the_nesting():
    taken = slice_samples({"a": Named(A, T), "b": (np.arange(5),)}, slice(1, 3))
    assert type(taken["a"]) is Named
    assert taken["a"].x.shape == (1,)
    assert taken["b"][0].tolist() == [1, 2]


def test_only_a_plain_tensor_dataset_is_nothing_but_tensors():
    class Augmented(TensorDataset):
        pass

    assert tensors_of(TensorDataset(T))[0] is T
    assert tensors_of(Augmented(T)) is None
    assert tensors_of(TensorDataset(torch.eye(2).to_sparse())) is None


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: (x, x), lambda x: {"x": x}])
def test_batches_have_the_values_and_the_layout_that_indexing_gives(nest, shuffle):
    images = torch.randn(6, 3, 4, 4)
    for data in (images, images.contiguous(memory_format=torch.channels_last), images.mT):
        source = InMemorySource(nest(data), 4, shuffle=shuffle, seed=1)
        order = epoch_order(6, 1, 2) if shuffle else torch.arange(6)
        for batch, index in zip(source.iterate(2), order.split(4), strict=True):
            for found in iterate_leaves(batch):
                assert torch.equal(found, data[index])
                assert found.stride() == (data[index] if shuffle else data[:4].clone()).stride()
