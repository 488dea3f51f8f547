"""Which world a launcher's environment describes; several processes are in tests/distributed."""

from __future__ import annotations

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.join_world import current_world, join_world


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
    world = join_world(use_distributed, environment)
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
        join_world(use_distributed, environment)


def test_the_environment_is_read_when_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="RANK must be"):
        join_world(None)


def test_without_a_launcher_the_current_world_is_one_process():
    assert current_world().size == 1
