"""What ranks agree on; ``tests/distributed/test_compare_ranks.py`` has it on real ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import fitkit
from fitkit import Callback, ConfigurationError, Event, NNHandler
from fitkit.data.spec import DataSpec
from fitkit.engine.batch_logs import BatchLogs, BatchLogsOfRanks
from fitkit.training.compare_ranks import (
    RankPlan,
    by_value,
    compare_evaluation,
    compare_fit,
    ranks_text,
    require_same_data,
)
from fitkit.training.options import FitOptions

DATA = (torch.ones(8, 2), torch.ones(8, 1))


class Reads(Callback):
    def on_train_batch_end(self, batch, logs):
        pass

    def on_epoch_end(self, epoch, logs):
        pass


def make(*callbacks):
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    for callback in callbacks:
        handler.add_callback(callback)
    return handler


def agreed(*handlers, options=None):
    """What the first handler agrees on with the others."""
    said = []

    def gather_all(value):
        said.append(value)
        return said[::-1]

    options = options or [FitOptions(DATA)] * len(handlers)
    for handler, one in reversed(list(zip(handlers, options, strict=True))):
        handler.world = SimpleNamespace(
            size=len(handlers), is_main=handler is handlers[0], gather_all=gather_all
        )
        found = None
        try:
            found = compare_fit(handler, one, DataSpec(DATA), {"": DataSpec(DATA)})
        except ConfigurationError:
            if handler is handlers[0]:
                raise
    return found


def test_a_single_rank_has_nothing_to_agree_on():
    handler, options = make(), FitOptions(DATA)
    spec, sets = DataSpec(DATA), {"b": DataSpec(DATA)}
    assert compare_fit(handler, options, spec, sets) == (RankPlan(), options, spec, sets)
    assert compare_evaluation(handler, handler.callbacks, sets) == (RankPlan(), sets)
    assert type(RankPlan().batch_logs(handler)) is BatchLogs


def test_callbacks_of_any_rank_count():
    every_third = Reads()
    every_third.batch_logs_interval = 3
    rank_plan, *_ = agreed(make(), make(Reads(), every_third))
    assert rank_plan.intervals == {Event.TRAIN_BATCH_END: [1, 3], Event.TEST_BATCH_END: []}
    assert rank_plan.share_after == [0]  # History comes later


def test_nothing_is_shared_after_the_last_callback():
    last = Reads()
    last.order = 500
    assert agreed(make(), make(last))[0].share_after == []
    later = Reads()
    later.order = 600
    assert agreed(make(last), make(later))[0].share_after == [500]


def test_built_in_callbacks_read_no_logs_of_batches():
    callbacks = [fitkit.TerminateOnNaN(), fitkit.ProgressBar(), fitkit.Timer(60.0)]
    rank_plan, *_ = agreed(make(*callbacks), make(*callbacks))
    assert rank_plan.intervals == {Event.TRAIN_BATCH_END: [], Event.TEST_BATCH_END: []}
    assert rank_plan.share_after == []
    assert agreed(make(fitkit.ThroughputMonitor()), make())[0].share_after == [0]


def test_a_rank_knows_that_a_callback_of_another_may_log():
    first, second = make(), make(Reads())
    agreed(first, second)
    assert first.callbacks.may_log
    assert not make().callbacks.may_log


def test_batch_logs_of_several_ranks():
    handler = make()
    handler.world = SimpleNamespace(size=2)
    assert type(RankPlan().batch_logs(handler)) is BatchLogsOfRanks


def test_the_seed_of_rank_0_is_everybodys(caplog):
    first, second = make(), make()
    options = [FitOptions(DATA, seed=3), FitOptions(DATA)]
    assert agreed(first, second, options=options)[1].seed == 3
    assert "different seeds (3 on rank 0, 0 on rank 1): all of them" in caplog.text


def test_ranks_in_words():
    assert by_value(["a", "b", "a", "a"]) == "a on ranks 0, 2 and 3, b on rank 1"
    assert ranks_text(range(3)) == "ranks 0, 1 and 2"
    assert ranks_text(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6 and 93 more"


@pytest.mark.parametrize("kwargs", [{"epochs": 2}, {"gradient_accumulation_steps": 2}])
def test_a_difference_is_an_error(kwargs):
    with pytest.raises(ConfigurationError, match=r"the ranks differ: .* is 1 on rank 0, 2 on rank"):
        agreed(make(), make(), options=[FitOptions(DATA, **kwargs), FitOptions(DATA)][::-1])


def predicted(*data):
    """What the first rank raises for data to predict, each of another rank."""
    said = []

    def gather_all(value):
        said.append(value)
        return said[::-1]

    handler, error = make(), None
    for rank in reversed(range(len(data))):
        handler.world = SimpleNamespace(size=len(data), is_main=rank == 0, gather_all=gather_all)
        try:
            require_same_data(handler, DataSpec(data[rank]))
        except ConfigurationError as caught:
            error = caught if rank == 0 else None
    return error


def loader(**kwargs):
    return DataLoader(TensorDataset(*DATA), 2, **kwargs)


@pytest.mark.parametrize(
    "data",
    [
        (DATA[0], DATA[0][:6]),
        (DATA[0], 2 * DATA[0]),
        tuple(Subset(TensorDataset(*DATA), range(rank, 8, 2)) for rank in range(2)),
        tuple(Subset(TensorDataset(*DATA), range(rank, rank + 6)) for rank in range(2)),
        tuple(loader(sampler=SubsetRandomSampler(range(rank, 8, 2))) for rank in range(2)),
    ],
    ids=["length", "values", "parts", "overlap", "sampler"],
)
def test_data_to_predict_that_differs_between_ranks_is_refused(data):
    with pytest.raises(ConfigurationError, match=r"the data to predict is not the same on all"):
        raise predicted(*data)
    assert predicted(data[0], data[0]) is None


def test_prediction_leaves_out_what_draws_the_order():
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    assert predicted(*(loader(shuffle=True, generator=one) for one in generators)) is None
    dataset = TensorDataset(*DATA)
    samplers = [DistributedSampler(dataset, 2, rank) for rank in range(2)]
    assert predicted(*(loader(sampler=one) for one in samplers)) is None
