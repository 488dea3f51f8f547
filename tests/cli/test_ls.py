"""``fitkit ls``."""

from __future__ import annotations

import datetime
import os
import shutil
import struct
import subprocess
import sys

import pytest

from fitkit.cli import printing

NAMES = ["best.pth", "epochs/04.pth", "epochs/03.pth", "steps/12.pth", "epochs/02.pth"]
NAMES += ["steps/6.pth", "epochs/01.pth", "weights.pth"]


def rows(result):
    return [line.split() for line in result.stdout.splitlines() if line.strip()]


def test_a_run(cli, run):
    head, *lines = rows(cli("ls", run))
    assert head == ["name", "epoch", "step", "val_loss", "size", "age"]
    assert [line[0] for line in lines] == NAMES
    by_name = {line[0]: line for line in lines}
    assert by_name["best.pth"][1:3] == ["4", "16"]
    assert by_name["best.pth"][-2:] == ["best", "last"]
    assert "=" in by_name["epochs/04.pth"], "it is the same file"
    assert by_name["epochs/04.pth"][-2:] == ["best", "last"]
    assert by_name["steps/12.pth"][1:3] == ["2+4", "12"]
    assert by_name["weights.pth"][-1] == "weights"


def test_the_place_decides_and_not_the_time_of_a_file(cli, run):
    os.utime(run / "epochs" / "01.pth", (2_000_000_000, 2_000_000_000))
    os.utime(run / "epochs" / "04.pth", (0, 0))
    assert [line[0] for line in rows(cli("ls", run))[1:]] == NAMES


def test_for_programs(as_json, run):
    found = {one["name"]: one for one in as_json("ls", run)}
    assert list(found) == NAMES
    assert [name for name, one in found.items() if one["is_last"]] == NAMES[:2]
    assert [name for name, one in found.items() if one["is_best"]] == NAMES[:2]
    assert found["best.pth"]["file_id"] == found["epochs/04.pth"]["file_id"]
    assert found["steps/6.pth"]["batch"] == 2
    assert found["epochs/02.pth"]["scores"]["val_loss"] > found["best.pth"]["scores"]["val_loss"]
    assert found["weights.pth"]["scores"] is None
    assert {one["run"] for one in found.values()} == {0, None}
    assert datetime.datetime.fromisoformat(found["best.pth"]["modified"]).tzinfo is not None


def test_damage(cli, as_json, run, damage):
    whole = (run / "epochs" / "03.pth").read_bytes()
    (run / "epochs" / "03.pth").write_bytes(whole[:5000])
    (run / "short").write_bytes(whole[:5000])  # known by its beginning, whatever its name
    damage(run / "epochs" / "02.pth")
    result = cli("ls", run)
    assert {line[0] for line in rows(result) if line[-1] == "damaged"} == {"epochs/03.pth", "short"}
    assert "03.pth' is not a whole checkpoint" in result.stderr
    found = {one["name"]: one["kind"] for one in as_json("ls", run, "--verify")}
    assert found["epochs/02.pth"] == "damaged", "a tensor is, which takes --verify to see"


def test_best_is_what_the_savers_of_the_last_one_say(as_json, run):
    """``best.pth`` of another run in the same place is not this run's best."""
    (run / "best.pth").unlink()
    shutil.copy(run / "epochs" / "01.pth", run / "best.pth")
    assert not any(one["is_best"] for one in as_json("ls", run))


def test_two_runs(cli, as_json, run, make_run, tmp_path):
    make_run(tmp_path / "other", lr=0.2, epochs=2)
    found = as_json("ls", tmp_path)
    assert [(one["run"], one["name"].split("/")[0]) for one in found if one["run"] is not None] == [
        (0, "run")
    ] * 7 + [(1, "other")] * 4
    assert [one["name"] for one in found if one["is_last"] and one["run"]] == [
        "other/best.pth",
        "other/epochs/02.pth",
    ]
    assert "\n\n" in cli("ls", tmp_path).stdout, "runs stand apart"


def test_what_is_no_checkpoint_is_not_listed(cli, as_json, tmp_path):
    assert "no checkpoints" in cli("ls", tmp_path).stdout
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / ".x.fitkit-tmp").write_bytes(b"PK\x03\x04")
    os.mkfifo(tmp_path / "pipe.pth")
    assert as_json("ls", tmp_path) == []


@pytest.mark.parametrize("score", ["accuracy", "nothing"])
def test_another_score(cli, run, score):
    head, first, *_ = rows(cli("ls", run, "--score", score))
    assert head[3] == score
    assert (first[3] == "-") == (score == "nothing")


# ---- progress -----------------------------------------------------------------------------------

LISTS_SLOWLY = """
import sys, time
from fitkit.checkpointing.catalog import scan
from fitkit.cli.all_commands import main
real = scan.read_outline
def read(path):
    time.sleep({seconds} / 8)
    return real(path)
scan.read_outline = read
main(["ls", {folder!r}], prog_name="fitkit")
"""


def in_a_terminal(code):
    """What a process writes to a terminal, stdout and stderr together."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    written = b""
    try:
        while part := os.read(leader, 4096):
            written += part
    except OSError:  # the end, on Linux
        pass
    finally:
        os.close(leader)
    assert process.wait(60) == 0
    return written.decode().replace("\r\n", "\n")  # as the terminal shows it


@pytest.mark.parametrize(("seconds", "is_shown"), [(0.1, False), (2.5, True)])
def test_a_bar_after_a_second_that_leaves_no_trace(run, seconds, is_shown):
    written = in_a_terminal(LISTS_SLOWLY.format(seconds=seconds, folder=str(run)))
    assert ("/8 [" in written) == is_shown
    if is_shown:
        before, _, after = written.rpartition("\r")
        assert before.rpartition("\r")[2].strip() == "", "it is overwritten with spaces"
        assert after.startswith(("\x1b", "name")), after[:80]
    assert "best.pth" in written


def test_no_bar_in_a_file(run):
    code = LISTS_SLOWLY.format(seconds=1.5, folder=str(run))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout
    files = [run / "best.pth"]
    assert printing.show_progress(files) is files, "stderr of the tests is no terminal"
