"""The script for a real device, on the CPU and on the simulated accelerator.

A check that fails here would fail on a GPU too, or for a reason that says nothing about one.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.no_cover

SCRIPT = Path(__file__).parents[1] / "scripts" / "on_cuda.py"
LINE = re.compile(r"(PASS|FAIL|SKIP) (.+?) \((\d+\.\d) s\): (.+)")
LAST = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped, (\d+) s")
LEAST_PASSED = {"cpu": 20, "sim": 30, "sim-without-float64": 30}
# What no simulation can show.
ONLY_ON_A_GPU = {
    "dropout between recurrent layers resumes as documented",
    "a device that is not the first is used alone",
    "several devices train save and resume",
    "a compiled run resumes bit for bit",
}


def start(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    memory = Path("/dev/shm")  # waiting for the disk shows nothing
    if memory.is_dir() and os.access(memory, os.W_OK):
        environment["TMPDIR"] = str(memory)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(process):
    """The exit status, the lines of its output, and what it said about errors."""
    out, err = process.communicate()
    return process.returncode, out.splitlines(), err


@pytest.fixture(scope="module")
def outcomes():
    """What the script says on a device; it is run once on each."""
    return functools.cache(lambda device: end(start(SCRIPT, "--device", device)))


def verdicts(lines):
    """The verdict of each check by its name."""
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return {match[2]: match[1] for match in found}


@pytest.mark.slow
@pytest.mark.parametrize("device", LEAST_PASSED)
def test_no_check_fails(device, outcomes):
    status, (first, *checks, last), err = outcomes(device)
    output = "\n".join([first, *checks, last, err])
    assert not [line for line in checks if line.startswith("FAIL")], output
    assert status == 0, output
    found = Counter(verdicts(checks).values())
    assert found["PASS"] >= LEAST_PASSED[device], output
    passed, failed, skipped, _ = LAST.fullmatch(last).groups()
    assert [int(passed), int(failed), int(skipped)] == [found["PASS"], 0, found["SKIP"]]
    assert f"torch {torch.__version__}" in first
    assert ("no float64" in first) == (device == "sim-without-float64")
    assert not any(str(Path.home()) in line for line in (first, *checks))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sim", "sim-without-float64"])
def test_the_simulated_accelerator_skips_only_what_needs_a_gpu(device, outcomes):
    _, (_, *checks, _), _ = outcomes(device)
    found = {name for name, verdict in verdicts(checks).items() if verdict == "SKIP"}
    assert found == ONLY_ON_A_GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so_and_is_no_success():
    status, lines, err = end(start(SCRIPT))
    assert status == 1, err
    assert lines == ["This needs a CUDA device, and torch sees none here: nothing was checked."]


# Several calls of the script in one process, the later ones with other checks in place of its own.
CALLS = """
import importlib.util, os, sys, torch

specification = importlib.util.spec_from_file_location("on_cuda", sys.argv[1])
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)
here = os.getcwd()

def call(*arguments):
    print(f"status {script.main(list(arguments))}", flush=True)

call("--list", "--only", "resume")
call("--device", "cpu", "--only", "a_metric of a USER")
call("--device", "cpu", "--only", "no such thing")
call("--device", "nowhere")

def one_fails(folder):
    os.chdir(folder)
    torch.use_deterministic_algorithms(True)
    raise ValueError("a reason " + 400 * "x" + "\\nand more")

def one_fails_in_the_library(folder):
    script.make().fit(epochs=1)

def one_leaves(folder):
    sys.exit(0)

def one_has_cases(folder):
    cases = script.Cases()
    with cases.case("good"):
        pass
    with cases.case("bad"):
        script.make().fit(epochs=1)
    return cases.summary("cases")

def one_is_skipped(folder):
    raise script.Skip("for this reason")

def the_next_finds_everything_as_it_was(folder):
    assert os.getcwd() == here
    assert not torch.are_deterministic_algorithms_enabled()
    assert not list(folder.iterdir())
    return "all of it"

own = (one_fails, one_fails_in_the_library, one_leaves, one_has_cases, one_is_skipped,
       the_next_finds_everything_as_it_was)
script.CHECKS[:] = [(function, 1.0) for function in own]
call("--device", "cpu")
call("--device", "cpu", "--budget", "0")
"""


@pytest.fixture(scope="module")
def calls():
    """The status and the lines of each call, by what it is about."""
    status, lines, err = end(start("-c", CALLS, SCRIPT))
    assert status == 0, err
    found, own = [], []
    for line in lines:
        if line.startswith("status "):
            found.append((int(line.split()[1]), own))
            own = []
        else:
            own.append(line)
    names = ("list", "only", "no such name", "no such device", "other checks", "no budget")
    return dict(zip(names, found, strict=True))


def test_checks_are_listed_with_their_seconds(calls):
    status, lines = calls["list"]
    assert status == 0
    assert "a run resumes bit for bit inside an epoch (8 s)" in lines
    assert all("resume" in line for line in lines[:-1])
    assert re.fullmatch(rf"{len(lines) - 1} checks, about \d+ s on a GPU", lines[-1])


def test_only_some_are_carried_out(calls):
    status, (_, *checks, last) = calls["only"]
    assert status == 0
    assert verdicts(checks) == {"a metric of a user works in both spellings": "PASS"}
    assert last.startswith("1 passed, 0 failed, 0 skipped, ")


def test_a_name_that_no_check_has_is_no_success(calls):
    status, (line,) = calls["no such name"]
    assert status == 1
    assert "'no such thing'" in line
    assert "Nothing was checked" in line


def test_a_device_that_is_not_there_is_no_success(calls):
    status, (line,) = calls["no such device"]
    assert status == 1
    assert "'nowhere'" in line
    assert "Nothing was checked" in line


def test_a_failure_is_told_in_a_line_and_counted(calls):
    status, (_, *checks, last) = calls["other checks"]
    assert status == 4
    assert last.startswith("1 passed, 4 failed, 1 skipped, ")
    details = {match[2]: match[4] for match in map(LINE.fullmatch, checks)}
    assert details["one fails"].startswith("ValueError: a reason xxx")
    assert "and more" not in details["one fails"]
    assert len(details["one fails"]) < 400
    assert re.search(r"\(fitkit/[\w/]+\.py:\d+\)$", details["one fails in the library"])
    assert details["one leaves"].startswith("SystemExit: 0")
    assert details["one has cases"].startswith("1 of 2 cases fail: bad: ConfigurationError: ")
    assert details["one is skipped"] == "for this reason"
    assert details["the next finds everything as it was"] == "all of it"


def test_without_a_budget_everything_is_skipped(calls):
    status, (_, *checks, last) = calls["no budget"]
    assert status == 0
    assert set(verdicts(checks).values()) == {"SKIP"}
    assert all("does not fit into the budget of 0 s" in line for line in checks)
    assert last.startswith("0 passed, 0 failed, 6 skipped, ")
