"""The choice of a strategy: what can be asked for, and what it comes to."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fitkit
from fitkit import DDP, FSDP, ConfigurationError, NNHandler
from fitkit.distributed.parallel import DDPParallel, Parallel
from fitkit.distributed.strategy import STRATEGIES, Strategy, as_strategy, make_parallel, timeout_of
from fitkit.distributed.world import World

CPU = torch.device("cpu")


class Two(World):
    """One of two processes."""

    size = 2

    def side_group(self):
        return self


@pytest.mark.parametrize("strategy", ["auto", "ddp", None, DDP(), DDP(find_unused_parameters=True)])
def test_several_processes_have_the_whole_model(strategy):
    parallel = make_parallel(strategy, Two(), CPU)
    assert isinstance(parallel, DDPParallel)
    assert not parallel.is_sharded


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp", None, DDP(), FSDP()])
def test_one_process_does_nothing(strategy):
    parallel = make_parallel(strategy, World(), CPU)
    assert type(parallel) is Parallel
    assert not parallel.is_sharded


def test_precision_is_an_argument_of_fit():
    with pytest.raises(ConfigurationError, match=r"mixed_precision .*fit\(precision="):
        DDP(mixed_precision=torch.float16)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fdsp", "one of 'auto', 'ddp', 'fsdp', or an object .* received 'fdsp'.*'fsdp'"),
        ("FSDP", "received 'FSDP'"),
        (3, "received 3"),
        (True, "received True"),
        (DDP, "received <class"),
        (nn.Linear(1, 1), "received Linear"),
    ],
)
@pytest.mark.parametrize("world", [World(), Two()])
def test_what_is_none_is_an_error_on_any_number_of_processes(strategy, message, world):
    with pytest.raises(ConfigurationError, match=message):
        make_parallel(strategy, world, CPU)


@pytest.mark.parametrize("name", ["find_unused_parameter", "module", "process_group"])
def test_arguments_that_torch_does_not_take_are_errors(name):
    with pytest.raises(ConfigurationError, match=f"received {name!r}") as caught:
        DDP(**{name: True})
    assert "find_unused_parameters" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": "Block"},
        {"blocks": nn.Linear(1, 1)},
        {"blocks": int},
        {"blocks": (nn.Linear, "Block")},
        {"blocks": [nn.Linear]},
        {"param_dtype": "bfloat16"},
        {"param_dtype": torch.int8},
        {"reduce_dtype": torch.bool},
        {"reduce_dtype": 16},
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used_are_errors(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"FSDP's {name} must be"):
        FSDP(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": nn.Linear},
        {"blocks": (nn.Linear, nn.Conv2d)},
        {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32},
    ],
    ids=str,
)
def test_arguments_that_can_be_used(options):
    assert vars(FSDP(**options)).items() >= options.items()
    assert "FSDP" in repr(FSDP(**options))


@pytest.mark.parametrize("kind", [DDP, FSDP])
@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (None, None),
        (90, timedelta(seconds=90)),
        (0.5, timedelta(seconds=0.5)),
        (timedelta(minutes=5), timedelta(minutes=5)),
    ],
)
def test_time_outs(kind, timeout, expected):
    assert timeout_of(kind(timeout=timeout)) == expected


@pytest.mark.parametrize("kind", [DDP, FSDP])
@pytest.mark.parametrize(
    "timeout",
    [0, -1, 0.0, 1e-9, float("nan"), float("inf"), 1e20, True, "60", [60], timedelta(0)],
    ids=repr,
)
def test_what_is_no_time_out_is_an_error(kind, timeout):
    expected = f"{kind.__name__}'s timeout must be a number of seconds above 0 or a datetime.timed"
    with pytest.raises(ConfigurationError) as caught:
        kind(timeout=timeout)
    assert str(caught.value).startswith(expected)
    assert f"received {timeout!r}: pass the longest time" in str(caught.value)


def test_what_says_nothing_of_time_leaves_it_as_it_is():
    assert timeout_of(as_strategy("fsdp")) is timeout_of(as_strategy(None)) is None
    assert timeout_of(Parallel(World())) is None  # it was said when that was bound


def test_a_time_out_is_seen():
    assert repr(DDP(timeout=60)) == "DDP(timeout=60)"
    assert "timeout=60" in repr(FSDP(timeout=60))


@pytest.mark.parametrize("call", ["constructor", "load", "initialize_from_checkpoint"])
def test_the_time_out_is_known_before_the_ranks_are_joined(call, monkeypatch, tmp_path):
    handler = NNHandler(nn.Linear, "cpu", in_features=1, out_features=1)
    handler.save(tmp_path / "saved.pth")
    asked = []

    def find(use_distributed, *, timeout=None):
        asked.append(timeout)
        return World()

    monkeypatch.setattr("fitkit.handler.load.join_world", find)
    strategy = DDP(timeout=90)
    if call == "constructor":
        NNHandler(nn.Linear(1, 1), "cpu", strategy=strategy)
    elif call == "load":
        NNHandler.load(tmp_path / "saved.pth", "cpu", strategy=strategy)
    else:
        model, path = nn.Linear(1, 1), tmp_path / "saved.pth"
        NNHandler.initialize_from_checkpoint(path, model, device="cpu", strategy=strategy)
    assert asked[0] == timedelta(seconds=90)


def test_what_is_seen_is_what_was_written():
    assert eval(repr(DDP(find_unused_parameters=True)), vars(fitkit)).options == {
        "find_unused_parameters": True
    }


def test_a_strategy_of_ones_own():
    class Mine(Strategy):
        def bind(self, world, device):
            return SimpleNamespace(world=world, device=device)

    world = Two()
    found = make_parallel(Mine(), world, CPU)
    assert (found.world, found.device) == (world, CPU)
    with pytest.raises(NotImplementedError):
        Strategy().bind(world, CPU)


def test_what_is_bound_already_is_taken_as_it_is():
    parallel = Parallel(World())
    assert make_parallel(parallel, Two(), CPU) is parallel


def test_the_names():
    assert set(STRATEGIES) == {"auto", "ddp", "fsdp"}


@pytest.mark.parametrize("strategy", ["auto", "fsdp", FSDP(param_dtype=torch.bfloat16), None])
def test_a_handler_of_one_process_trains_with_any(strategy):
    handler = NNHandler(nn.Linear(2, 1), device="cpu", strategy=strategy)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.fit((torch.ones(4, 2), torch.ones(4, 1)), progress_bar=False)
    assert handler.model is handler.module
    assert type(handler.module.weight.data) is torch.Tensor


def test_a_handler_says_at_once_that_there_is_no_such_strategy():
    with pytest.raises(ConfigurationError, match="strategy must be"):
        NNHandler(nn.Linear(2, 1), device="cpu", strategy="zero")


@pytest.mark.slow
def test_who_does_not_shard_does_not_pay_for_it():
    code = """
import sys, torch, fitkit
from torch import nn
handler = fitkit.NNHandler(nn.Linear(2, 1), device="cpu", strategy="fsdp")
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(nn.MSELoss())
handler.fit((torch.ones(4, 2), torch.ones(4, 1)), progress_bar=False)
late = ("fitkit.distributed.fsdp", "fitkit.checkpointing.storage.torch_metadata",
        "torch.distributed.checkpoint")
print([name for name in late if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
