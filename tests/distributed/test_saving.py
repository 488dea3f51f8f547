"""Killed, told to end, restarted by hand or by torchrun: a run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import time

import pytest

from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.storage.run_lock import RunLock

pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.no_cover]

SECONDS_TO_END = 10.0


def wait_for_step(launch, out, step, seconds=60.0):
    """Until a process of the run is at that step or beyond."""
    deadline = time.monotonic() + seconds
    while not any(_number(out / f"step{rank}") >= step for rank in (0, 1)):
        assert time.monotonic() < deadline, launch.output()
        assert launch.process.poll() is None, launch.output()
        time.sleep(0.002)


def _number(path):
    try:
        return int(path.read_text() or -1)
    except FileNotFoundError:
        return -1


def assert_ended_as(out, whole, kit):
    """The same to the bit: what the main process knew, what it wrote."""
    kit.assert_equal(kit.result(out), kit.result(whole))
    kit.assert_equal(kit.result(out, 1), kit.result(whole, 1), but=("drawn",))
    assert (out / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    for name in ("last.pth", "best.pth"):
        kit.assert_equal(content_of(out / "runs" / name), content_of(whole / "runs" / name))


def content_of(path):
    """What a checkpoint holds, without sums that no run reads again.

    Before its validation an epoch still has the validation sums of the epoch before. Those of other
    ranks are not in a checkpoint that is made between epochs, so they are lost with the process.
    """
    content = latest.read_full(path)
    if content["progress"]["state"]["phase"] in ("begin", "train", "validate"):
        for other in content["progress"]["others"]:
            other["meters"].pop("validation", None)
    return content


@pytest.fixture
def whole(two):
    """The run that nobody interrupted."""
    return two / "killed"


def test_killed_at_random_it_ends_bit_for_bit_as_uninterrupted(
    launcher, tmp_path, whole, cases, kit
):
    """Every process, the launcher included, is killed twice; then the run is left alone."""
    out, chance = tmp_path / "out", random.Random(5)
    for first, last in ((2, 9), (14, 22)):
        launch = launcher.start(out, *cases.killed, "--resume")
        wait_for_step(launch, out, chance.randint(first, last))
        launch.kill()
    ended = launcher.run(out, *cases.killed, "--resume")
    assert ended.code == 0, ended.output
    assert_ended_as(out, whole, kit)


@pytest.mark.parametrize("launcher_too", [False, True])
def test_told_to_end_it_saves_and_goes_on(launcher_too, launcher, tmp_path, whole, cases, kit):
    """SIGTERM to one process: all save together and end; then SIGTERM to the launcher."""
    out = tmp_path / "out"
    ended = launcher.run(out, *cases.killed, "--resume", "--strike", "SIGTERM", 1, 8)
    assert ended.code != 0
    assert ended.at - kit.struck_at(out) < SECONDS_TO_END
    for rank in (0, 1):
        error = kit.error_of(out, rank)
        assert (error["type"], error["text"]) == ("Preempted", "143")
    saved = {_step_of(path) for path in (out / "runs").glob("*.pth")}
    assert {_number(out / "step0"), _number(out / "step1")} == {max(saved)}

    if launcher_too:
        launch = launcher.start(out, *cases.killed, "--resume")
        wait_for_step(launch, out, max(saved) + 4)
        began = time.monotonic()
        os.kill(launch.process.pid, signal.SIGTERM)
        ended = launch.wait()
        assert ended.code != 0
        assert time.monotonic() - began < SECONDS_TO_END
        assert not launcher.members()

    ended = launcher.run(out, *cases.killed, "--resume")
    assert ended.code == 0, ended.output
    assert_ended_as(out, whole, kit)


def _step_of(path):
    return latest.read_full(path)["progress"]["state"]["global_step"]


def test_torchrun_brings_it_back_by_itself(launcher, tmp_path, whole, cases, kit):
    """A worker kills itself once; the launcher starts all of them again."""
    out = tmp_path / "out"
    ended = launcher.run(
        out, *cases.killed, "--resume", "--strike", "SIGKILL", 1, 7, options=("--max-restarts=3",)
    )
    assert ended.code == 0, ended.output
    assert (out / "struck").exists()
    assert_ended_as(out, whole, kit)


def test_where_another_process_trains_no_rank_begins(launcher, tmp_path, kit):
    """The main process finds the lock of a living process; the others learn of it at once."""
    out = tmp_path / "out"
    lock = RunLock(out / "runs", "best.pth")
    lock.take()  # this process lives on
    ended = launcher.run(out, "--resume")
    lock.release()
    assert ended.code != 0
    first, second = (kit.error_of(out, rank) for rank in (0, 1))
    assert (first["type"], second["type"]) == ("ConfigurationError", "RankError")
    owner = f"another process trains into .*: process {os.getpid()} on "
    assert re.search(owner, first["text"])
    assert re.search(f"rank 0 failed.*{owner}", second["text"], re.DOTALL)
    assert abs(first["time"] - second["time"]) < 2.0
    assert not list(out.glob("step*")), "nothing was trained"
    assert list((out / "runs").iterdir() if (out / "runs").exists() else []) == []


def test_restarted_with_another_number_of_processes(launcher, tmp_path, one, cases, kit):
    """Two are killed, three go on, one brings it to its end."""
    out = tmp_path / "out"
    how = [*cases.saved["plain"][: cases.saved["plain"].index("--keep")], "--ema", "0.9"]
    how += ["--data", "dataset", "--resume", "--delay", "0.05"]
    for processes, step in ((2, 2), (3, 5)):
        launch = launcher.start(out, *how, processes=processes)
        wait_for_step(launch, out, step)
        launch.kill()
    ended = launcher.run(out, *how, processes=1)
    assert ended.code == 0, ended.output
    found, expected = kit.result(out), kit.result(one / "plain")
    kit.assert_close(found, expected, 1e-9, but=("drawn",))
    assert len(re.findall("fit resumes from", ended.output)) == 1
