"""Which world a launcher's environment or a process group of the program describes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed import join_world as module
from fitkit.distributed import process_group
from fitkit.distributed.alone import alone
from fitkit.distributed.join_world import current_world, join_world

SCRIPT = Path(__file__).parents[1] / "scripts" / "spawned_ranks.py"


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


# ---- groups that the program made ---------------------------------------------------------------


@pytest.fixture
def joined(monkeypatch):
    """What would be joined."""
    found = []
    monkeypatch.setattr(module, "_joined", [])
    monkeypatch.setattr(module, "_join", lambda info, timeout: found.append(info) or info)
    return found


@pytest.mark.parametrize(
    ("environment", "local_rank"),
    [({}, 2), ({"LOCAL_RANK": "1"}, 1), ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, 0)],
)
def test_a_group_of_the_program_says_who_the_ranks_are(environment, local_rank, joined, group):
    group("fake", 2, 3)
    join_world(None, environment)
    assert [(info.rank, info.size, info.local_rank) for info in joined] == [(2, 3, local_rank)]


def test_a_group_of_one_process_is_one_process(joined, group):
    group("gloo")
    assert join_world(None, {"WORLD_SIZE": "4", "RANK": "0"}).size == 1
    assert join_world(True, {}).size == 1
    assert not joined


def test_use_distributed_false_ignores_the_group(joined, group):
    group("fake", 2, 3)
    assert join_world(False, {}).size == 1
    with alone():
        assert join_world(None, {}).size == 1
    assert not joined


def test_a_group_without_a_store_is_refused(group, monkeypatch):
    group("gloo")
    monkeypatch.setattr(process_group.dist.distributed_c10d, "_get_default_store", lambda: None)
    with pytest.raises(ConfigurationError, match=r"'gloo'.* has no store"):
        process_group.default_store()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("backend", ["gloo", "cuda:gloo"])
def test_spawned_processes_train_together(backend, tmp_path):
    """Also where the group takes no host tensors, and where a second group follows the first."""
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), backend], check=True, timeout=120)
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert [one["place"] for one in first["joined"]] == [[0, 2, 0]] * 2
    assert [one["place"] for one in second["joined"]] == [[1, 2, 1]] * 2
    assert first["joined"][0]["losses"] == second["joined"][0]["losses"]
    assert first["joined"] == [first["joined"][0]] * 2
    assert [one["ran"] for one in first["joined"] + second["joined"]] == [None, None, 1, 1]
    for found in (first, second):
        assert found["before"] == found["alone"][0] == 1
        assert "create a new handler after init_process_group" in found["after"]
    # one main rank, which writes
    assert (tmp_path / "of_rank0" / "last.pth").exists()
    assert not (tmp_path / "of_rank1").exists()
