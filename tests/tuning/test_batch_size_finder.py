import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fitkit
from fitkit.tuning.batch_size_finder import largest


class Hungry(nn.Module):
    """Asks for more memory than there is once a batch has more than ``limit`` samples."""

    def __init__(self, limit=13, *, error=None):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.limit, self.error = limit, error
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.limit:
            if self.error is not None:
                raise self.error
            torch.empty(2**50)  # a real failure of the allocator
        return self.layer(x)


DATA = (torch.randn(100, 3), torch.zeros(100, dtype=torch.long))


def make(model=None, data=DATA):
    handler = fitkit.NNHandler(Hungry() if model is None else model, "cpu", seed=0)
    handler.set_optimizer(torch.optim.Adam)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader(data)
    return handler


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_the_largest_that_fits_is_found_in_few_tries(capacity, start, limit):
    tried = []

    def attempt(size):
        assert 1 <= size <= limit
        tried.append(size)
        return MemoryError() if size > capacity else None

    assert largest(attempt, min(start, limit), limit) == min(capacity, limit)
    assert len(tried) == len(set(tried)) <= 20


def test_where_not_one_sample_fits_the_error_is_raised():
    with pytest.raises(MemoryError) as caught:
        largest(lambda size: MemoryError("full"), 8, 100)
    assert caught.value.__notes__ == ["raised with a batch of one sample"]


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError("numpy has none left"),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_running_out_of_memory_is_caught_in_all_its_forms(error):
    handler = make(Hungry(error=error))
    assert handler.find_batch_size() == 13
    assert handler.module.sizes[:7] == [2, 2, 2, 4, 4, 4, 8]


@pytest.mark.parametrize("start", [1, 13, 14, 64, 1000])
def test_from_any_start(start):
    assert make().find_batch_size(start=start, num_steps=1) == 13


@pytest.mark.parametrize(("max_size", "expected"), [(None, 100), (50, 50), (1, 1), (1000, 100)])
def test_no_more_than_the_samples_or_what_was_said(max_size, expected):
    assert make(Hungry(10**9)).find_batch_size(max_size=max_size, num_steps=1) == expected


class Rows(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return DATA[0][index], 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows())


def collate(samples):
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        TensorDataset(*DATA),
        Rows(),
        DataLoader(Rows(), batch_size=7, shuffle=True),
        DataLoader(Rows(), batch_size=7, collate_fn=collate),
        DataLoader(TensorDataset(*DATA), batch_sampler=[[0, 1]]),
    ],
)
def test_any_data_whose_batches_are_made_here(data):
    assert make().find_batch_size(data, num_steps=1) == 13


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream(), batch_size=4)])
def test_a_stream_needs_a_limit(data):
    with pytest.raises(fitkit.ConfigurationError, match="pass max_size="):
        make().find_batch_size(data)
    assert make().find_batch_size(data, max_size=60, num_steps=1) == 13


def test_what_brings_its_own_batches_is_refused():
    with pytest.raises(fitkit.DataError, match="brings its own batches"):
        make().find_batch_size([DATA])


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes"):
        make(Hungry(error=RuntimeError("the shapes do not fit"))).find_batch_size()


def test_arguments_of_fit_that_decide_what_a_step_takes():
    handler = make()
    assert handler.find_batch_size(precision="bf16", gradient_accumulation_steps=2) == 13
    for wrong in ({"epochs": 2}, {"precison": "bf16"}, {"callbacks": []}):
        with pytest.raises(fitkit.ConfigurationError, match="cannot be passed"):
            handler.find_batch_size(**wrong)


@pytest.mark.parametrize("wrong", [{"start": 0}, {"max_size": 0}, {"num_steps": None}])
def test_bad_arguments(wrong):
    with pytest.raises(fitkit.ConfigurationError, match="received"):
        make().find_batch_size(**wrong)


def test_without_samples():
    empty = (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(fitkit.DataError, match="no sample"):
        make(data=empty).find_batch_size()
