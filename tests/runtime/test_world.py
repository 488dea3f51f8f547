import pytest
import torch

from fitkit.core.errors import ConfigurationError
from fitkit.runtime.world import World, find_world


@pytest.mark.parametrize(
    ("use_distributed", "environment"),
    [
        (None, {}),
        (None, {"WORLD_SIZE": "1"}),
        (None, {"WORLD_SIZE": " 1 "}),
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
        (None, {"WORLD_SIZE": "2"}, "asked for 2 processes with use_distributed=None"),
        (None, {"WORLD_SIZE": " 8"}, "asked for 8 processes"),
        (True, {"WORLD_SIZE": "4"}, "asked for 4 processes with use_distributed=True"),
        (True, {}, "asked for 1 process with .*pass use_distributed=False"),
        (None, {"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number .* received 'two'"),
        (None, {"WORLD_SIZE": "0"}, "at least 1, received '0'"),
        (None, {"WORLD_SIZE": "-3"}, "received '-3'"),
        (None, {"WORLD_SIZE": ""}, "received ''"),
        ("yes", {}, "use_distributed must be True, False or None, received 'yes'"),
        (1, {}, "received 1"),
    ],
)
def test_what_it_cannot_do_is_an_error(use_distributed, environment, message):
    with pytest.raises(ConfigurationError, match=message):
        find_world(use_distributed, environment)


def test_the_environment_is_read_when_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="3 processes"):
        find_world(None)


def test_reductions_of_one_process_are_the_identity():
    world, sums = World(), torch.tensor([1.0, 2.0])
    assert world.sum(sums) is sums
    assert world.on_main(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        world.on_main(lambda: 1 / 0)
