"""Log files of runs that are killed, in real processes: every row once, under one header."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover

SCRIPT = Path(__file__).parents[1] / "scripts" / "logged_run.py"
HEADER = "epoch,loss,accuracy,val_loss,val_accuracy,lr"


def start(folder, *arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).returncode == 0
    return (folder / "log.csv").read_text()


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epoch", "before"), [("0", False), pytest.param("1", True, marks=pytest.mark.slow)]
)
def test_a_run_that_appends_and_is_killed_again_and_again(tmp_path, whole, epoch, before):
    """The first checkpoint is made in the second epoch, before its row is written."""
    if before:
        (tmp_path / "log.csv").write_text(whole)
    for _ in range(2):
        assert start(tmp_path, "--kill-after", epoch).returncode == -signal.SIGKILL
    ended = start(tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = whole.removeprefix(f"{HEADER}\n")
    assert (tmp_path / "log.csv").read_text() == whole + rows * before
    assert not hidden(tmp_path)


@pytest.mark.slow
def test_a_log_that_is_moved_away_and_a_kill(tmp_path, whole):
    killed = start(tmp_path, "--move-at", "2", "--kill-after", "2")
    assert killed.returncode == -signal.SIGKILL
    ended = start(tmp_path)
    assert ended.returncode == 0, ended.stderr
    header, *rows = whole.splitlines(keepends=True)
    assert (tmp_path / "moved.csv").read_text() == header + rows[0] + rows[1]
    # the checkpoint was made before the log was moved, so the log is written again whole
    assert (tmp_path / "log.csv").read_text() == whole


@pytest.mark.parametrize(("on_error", "code"), [("raise", 1), ("warn", 0)])
def test_a_limit_of_the_file_s_size(tmp_path, whole, on_error, code):
    limit = str(len(whole) - 5)
    ended = start(tmp_path, "--limit", limit, "--on-error", on_error, "--no-checkpoints")
    assert ended.returncode == code
    assert ended.stderr.count("could not save to 'log.csv': File too large") == 1
    assert (tmp_path / "log.csv").read_text() == "".join(whole.splitlines(keepends=True)[:-1])
