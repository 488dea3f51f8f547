from __future__ import annotations

import pytest
import torch

from fitkit.core.errors import ConfigurationError, RankError
from fitkit.runtime.world import World, find_world, on_rank


@pytest.mark.parametrize(
    ("use_distributed", "environment"),
    [
        (None, {}),
        (None, {"WORLD_SIZE": "1"}),
        (None, {"WORLD_SIZE": " 1 "}),
        (True, {"WORLD_SIZE": "1", "RANK": "0"}),
        (None, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}),
        (False, {}),
        (False, {"WORLD_SIZE": "8"}),
        (False, {"WORLD_SIZE": "nonsense"}),
    ],
)
def test_one_process(use_distributed, environment):
    world = find_world(use_distributed, environment)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)


@pytest.mark.parametrize(
    ("use_distributed", "environment", "message"),
    [
        (True, {}, "no launcher has started this process: start the script with torchrun"),
        (None, {"WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0 and below 2"),
        (None, {"WORLD_SIZE": "2", "RANK": "2"}, "below 2, received '2'"),
        (None, {"WORLD_SIZE": "2", "RANK": "-1"}, "below 2, received '-1'"),
        (None, {"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number .* received 'two'"),
        (None, {"WORLD_SIZE": "0"}, "at least 1, received '0'"),
        (None, {"WORLD_SIZE": "-3"}, "received '-3'"),
        (None, {"WORLD_SIZE": ""}, "received ''"),
        (None, {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"}, "LOCAL_RANK must be"),
        ("yes", {}, "use_distributed must be True, False or None, received 'yes'"),
        (1, {}, "received 1"),
    ],
)
def test_what_cannot_be_read_is_an_error(use_distributed, environment, message):
    with pytest.raises(ConfigurationError, match=message):
        find_world(use_distributed, environment)


def test_the_environment_is_read_when_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="RANK must be"):
        find_world(None)


def test_what_one_process_says_to_itself():
    world, sums = World(), torch.tensor([1.0, 2.0])
    assert world.sum(sums) is sums
    assert world.largest([1, 2]) == [1, 2]
    assert world.gather("a") == world.gather_all("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.copy_from_main([sums]) is None
    assert world.on_main(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        world.on_main(lambda: 1 / 0)
    error = ValueError("mine")
    assert world.fail(error) is error
    assert not world.is_broken


@pytest.mark.parametrize("barrier", [False, True])
def test_on_rank_in_one_process(barrier):
    calls = []

    @on_rank(3, barrier=barrier)
    def act(value):
        """What it does."""
        calls.append(value)
        return value / 0 if value == 7 else value

    assert (act(5), calls) == (5, [5])
    assert act.__doc__ == "What it does."
    with pytest.raises(ZeroDivisionError):
        act(7)


def test_the_error_of_another_process_says_which():
    error = RankError(3, "ValueError: boom")
    assert str(error) == "rank 3 failed, and with it the run: ValueError: boom"
    assert (error.rank, error.told) == (3, "ValueError: boom")


def test_one_process_is_beside_itself():
    world = World()
    assert world.beside() is world
    assert world.group is None
