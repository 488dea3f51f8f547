"""The examples do what they print, and a killed one ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from fitkit import NNHandler
from fitkit.testing import differences

pytestmark = pytest.mark.no_cover

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "digits.py"
FOLDER = Path("runs", "digits")
CHECKPOINTS = ("best.pth", "checkpoints/last.pth")
WRITTEN = (*CHECKPOINTS, "log.csv", "curves.png")
TIMEOUT_SECONDS = 240


def command(*options: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLE), *options]


def run(where: Path, *options: str) -> str:
    where.mkdir(exist_ok=True)
    finished = subprocess.run(
        command(*options), cwd=where, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_until_killed(where: Path, lines_in_log: int, *options: str) -> None:
    """Start the example, and kill it once its log has so many lines."""
    where.mkdir()
    process = subprocess.Popen(
        command(*options), cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        log = where / FOLDER / "log.csv"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not log.exists() or len(log.read_text().splitlines()) < lines_in_log:
            assert process.poll() is None, "the example ended before it could be killed"
            assert time.monotonic() < deadline, "the example made no progress"
            time.sleep(0.01)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL


def contents(where: Path) -> dict[str, Any]:
    """What a run left: checkpoints as what they hold, other files as their bytes."""
    found: dict[str, Any] = {}
    for name in WRITTEN:
        path = where / FOLDER / name
        is_checkpoint = name in CHECKPOINTS
        found[name] = torch.load(path, weights_only=True) if is_checkpoint else path.read_bytes()
    return found


def is_same(first: Path, second: Path) -> bool:
    """Whether two runs left the same, bit for bit."""
    return not list(differences(contents(first), contents(second)))


def accuracy(output: str) -> float:
    return float(re.search(r"test accuracy of the best weights: (\d\.\d+)", output).group(1))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Five epochs without an interruption: where they ran, and what was printed."""
    where = tmp_path_factory.mktemp("short") / "run"
    return where, run(where, "--epochs", "5")


def test_prints_what_it_wrote(short_run):
    where, output = short_run
    assert accuracy(output) > 0.9
    for name in WRITTEN:
        assert f"wrote {FOLDER / name}\n" in output
        assert (where / FOLDER / name).stat().st_size > 0
    assert contents(where)["curves.png"].startswith(b"\x89PNG")
    assert len((where / FOLDER / "log.csv").read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("lines_in_log", [2, 4])
def test_killed_and_resumed_ends_bit_for_bit_as_uninterrupted(short_run, tmp_path, lines_in_log):
    uninterrupted, expected = short_run
    killed = tmp_path / "run"
    run_until_killed(killed, lines_in_log, "--epochs", "5")
    assert run(killed, "--epochs", "5", "--resume") == expected
    assert is_same(killed, uninterrupted)


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_more(short_run):
    where, expected = short_run
    before = contents(where)
    assert run(where, "--epochs", "5", "--resume") == expected
    assert not list(differences(contents(where), before))


@pytest.mark.slow
def test_resuming_where_nothing_is_starts_afresh(short_run, tmp_path):
    uninterrupted, _ = short_run
    output = run(tmp_path / "run", "--epochs", "1", "--resume", "--output", str(FOLDER))
    first_rows = contents(uninterrupted)["log.csv"].splitlines()[:2]
    assert contents(tmp_path / "run")["log.csv"].splitlines() == first_rows
    assert output.startswith("1 epochs; all that were asked for\n")


SCORE_EXAMPLE = EXAMPLE.with_name("score_digits.py")


@pytest.mark.slow
def test_the_drawn_digits_are_those_that_were_asked_for(tmp_path):
    """A short run of the other example, judged by a classifier that has seen real digits."""
    options = ["--epochs", "30", "--steps", "20"]
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(SCORE_EXAMPLE), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("30 epochs; loss 0.1")
    folder = tmp_path / "runs" / "score_digits"
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    # The class is gone with the process: the source in the file is enough. After so few epochs the
    # averaged weights are still near the first ones.
    path = folder / "checkpoints" / "last.pth"
    handler = NNHandler.load(path, trust_code=True, skip_ema=True)
    wanted = torch.arange(10).repeat(10)
    drawn = handler.sample(
        (100, 1, 8, 8),
        steps=30,
        conditions=wanted,
        unconditional=torch.tensor([10]),
        guidance=2.0,
        seed=1,
    )
    pixels, digits = load_digits(return_X_y=True)
    judge = SVC(gamma=0.001).fit(pixels, digits)
    judged = judge.predict(((drawn + 1) * 8).clamp(0, 16).flatten(1).numpy())
    assert (judged == wanted.numpy()).mean() >= 0.9


@pytest.mark.slow
def test_the_full_run_recognises_98_of_100_digits(tmp_path):
    assert accuracy(run(tmp_path / "run")) >= 0.98


# ---- the others, each in a short form -----------------------------------------------------------

# Its options, a number that it prints with the least and the greatest that it may be, its pictures.
SHORT = {
    "char_transformer.py": (
        ["--epochs", "1", "--characters", "100000", "--write", "20"],
        (r"^(\d\.\d+) bits per character", 2.0, 4.6),
        ["bits.png"],
    ),
    "diabetes.py": (
        ["--epochs", "15", "--folds", "2"],
        (r"^R2 over all patients (-?\d\.\d+)", 0.35, 0.6),
        ["predictions.png"],
    ),
    "resume_after_kill.py": (
        ["--epochs", "6", "--kills", "1"],
        (r"^reached a validation accuracy of (\d\.\d+)", 0.6, 1.0),
        ["curves.png"],
    ),
    "custom_callback.py": (
        ["--epochs", "4"],
        (r"^accuracy (\d\.\d+)", 0.85, 1.0),
        ["forgotten.png"],
    ),
    "two_processes.py": (
        ["--epochs", "3"],
        (r"differ by (\d\.\de-\d+) at most", 0.0, 1e-4),
        ["curves.png"],
    ),
}
WITH_TESTS_OF_THEIR_OWN = {"digits.py", "score_digits.py", "ray_train.py"}


def test_every_example_is_run_by_a_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} <= set(SHORT) | WITH_TESTS_OF_THEIR_OWN


# These start several processes, or compute for a while.
LONG = {"char_transformer.py", "custom_callback.py", "resume_after_kill.py", "two_processes.py"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SHORT]
)
def test_the_short_form_reaches_something_and_draws_it(name, tmp_path):
    options, (pattern, least, greatest), pictures = SHORT[name]
    where = ["--output", "here"]
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *options, *where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    reached = re.search(pattern, finished.stdout, re.MULTILINE)
    assert reached, finished.stdout
    assert least <= float(reached.group(1)) <= greatest
    for picture in pictures:
        assert f"wrote {Path('here', picture)}\n" in finished.stdout
        assert (tmp_path / "here" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_on_the_page_of_examples_and_explains_its_options(path):
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    assert f"../examples/{path.name}" in page
    text = path.read_text()
    assert re.search(r"argparse\.ArgumentParser\(\s*description=", text)
    assert text.count("add_argument(") == text.count("help=")
