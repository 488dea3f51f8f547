"""Spoiled files: every command ends with a sentence and an exit code, never with a traceback."""

from __future__ import annotations

import importlib.util
import os
import random
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.cli.all_commands import main

pytestmark = pytest.mark.no_cover

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "checkpointing" / "golden"


@pytest.fixture(scope="module", autouse=True)
def _no_flushing():
    """Nothing here is about losing power."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def fuzz():
    """How the reader of checkpoints is tried."""
    path = TESTS / "checkpointing" / "test_fuzz.py"
    specification = importlib.util.spec_from_file_location("checkpointing_fuzz", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder with one whole checkpoint; a spoiled one joins it."""
    (tmp_path / "run").mkdir()
    atomic_write.write(safe_load.read(GOLDEN / "plain.pth"), tmp_path / "run" / "whole.pth")
    return tmp_path / "run"


def calls(spoiled, folder):
    out = folder.parent / "out"
    return [
        ["inspect", spoiled],
        ["inspect", spoiled, "--json"],
        ["ls", folder],
        ["ls", folder, "--json", "--verify"],
        ["verify", spoiled],
        ["diff", spoiled, folder / "whole.pth"],
        ["diff", GOLDEN / "rich.pth", spoiled, "--json"],
        ["diff", spoiled, spoiled, "--weights"],
        ["prune", folder, "--keep-last", "1", "--dry-run"],
        ["split", spoiled, "--all", "--force"],
        ["merge", spoiled, "-o", out, "--force"],
        ["export", spoiled, "--format", "state-dict", "-o", out, "--force"],
        ["export", spoiled, "--format", "safetensors", "-o", out, "--force", "--ema"],
    ]


def check(call):
    """The exit code; anything but our errors is raised here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, [str(one) for one in call], catch_exceptions=False)
    assert result.exit_code in (0, 1, 3), (call, result.output)
    if result.exit_code == 3 and call[0] != "verify":
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("Error: ") == 1
    return result.exit_code


def test_spoiled_bytes(folder):
    rng, data = random.Random(0), (GOLDEN / "rich.pth").read_bytes()
    spoiled = folder / "spoiled.pth"
    codes = []
    for number in range(15):
        content = bytearray(data)
        if number % 3:
            for _ in range(rng.choice([1, 2, 8])):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        spoiled.write_bytes(content)
        codes += [check(call) for call in calls(spoiled, folder)]
    assert {0, 1, 3} == set(codes)


@pytest.mark.parametrize("count", [4, pytest.param(14, marks=pytest.mark.slow)])
def test_spoiled_structures(fuzz, folder, count):
    original = safe_load.read(GOLDEN / "rich.pth")
    rng, paths = random.Random(1), list(fuzz.paths_of(original))
    spoiled = folder / "spoiled.pth"
    for _ in range(count):
        state, message = fuzz.spoil(original, rng, paths)
        fuzz.write(state, spoiled)
        for call in calls(spoiled, folder):
            try:
                with fuzz.limited():
                    check(call)
            except BaseException as error:
                raise AssertionError(f"{call[0]} of {message}") from error


def test_each_junk_in_the_place_of_each_part(fuzz, folder):
    original = safe_load.read(GOLDEN / "rich.pth")
    rng, spoiled = random.Random(2), folder / "spoiled.pth"
    for key in original:
        state = {**original, key: rng.choice(fuzz.JUNK)}
        fuzz.write(state, spoiled)
        for call in calls(spoiled, folder)[:6]:
            check(call)
