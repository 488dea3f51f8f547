"""RunLock: one living process trains into a folder under a template; a dead one is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fitkit import ConfigurationError, SaveError
from fitkit.checkpointing.storage import run_lock
from fitkit.checkpointing.storage.lock_owner import LockOwner
from fitkit.checkpointing.storage.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from fitkit.checkpointing.storage.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), "{epoch}.pth")
lock.take()
lock.name_run("b" * 32)
print("taken", flush=True)
time.sleep(60)
"""
RACER = """
import sys, time
from pathlib import Path
from fitkit import ConfigurationError
from fitkit.checkpointing.storage.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), "{epoch}.pth")
while time.time() < float(sys.argv[2]): pass
try: lock.take(); print("won", flush=True)
except ConfigurationError: print("lost", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path / "run"``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def locks(folder):
    return [path for path in folder.iterdir() if path.name.endswith(run_lock.SUFFIX)]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_makes_the_folder_and_removes_it_if_it_is_empty(tmp_path):
    lock = RunLock(tmp_path / "a" / "b", "{epoch}.pth")
    lock.take()
    assert locks(tmp_path / "a" / "b") == [lock.path]
    lock.require_held()
    lock.release()
    assert not (tmp_path / "a").exists()
    lock = RunLock(tmp_path / "a", "{epoch}.pth")
    lock.take()
    (tmp_path / "a" / "1.pth").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1.pth"]


def test_a_living_owner_is_named_also_when_it_is_stopped(tmp_path, holder):
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"process {holder.pid} on .*, since 20\d\d-"):
            RunLock(tmp_path / "run", "{epoch}.pth").take()
        os.kill(holder.pid, signal.SIGSTOP)
    other = RunLock(tmp_path / "run", "best.pth")
    other.take()
    other.release()
    assert len(locks(tmp_path / "run")) == 1


def test_a_killed_owner_is_taken_over_with_the_name_of_its_run(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path / "run", "{epoch}.pth")
    lock.take()
    assert lock.predecessor.run_id == "b" * 32
    assert LockOwner.read(lock.path).pid == os.getpid()
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
def test_of_several_successors_one_wins(tmp_path, holder):
    holder.kill()
    holder.wait()
    for _ in range(3):
        command = [sys.executable, "-c", RACER, str(tmp_path / "run"), str(time.time() + 6)]
        racers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = [racer.stdout.readline().strip() for racer in racers]
        assert sorted(said) == ["lost", "lost", "lost", "won"]
        for racer in racers:
            racer.kill()  # the next ones find a dead owner again
            racer.communicate()
    assert len(locks(tmp_path / "run")) == 1


def test_the_lock_of_a_takeover_that_was_killed_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path / "run", "{epoch}.pth")
    claim = lock.path.with_name(f"{lock.path.name}.{run_lock._token(lock.path)[:8]}.fitkit-lock")
    claim.write_bytes(lock.path.read_bytes())
    lock.take()
    assert locks(tmp_path / "run") == [lock.path]
    lock.release()


# ---- another machine ----------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "DEAD_SECONDS", 1.5)
    monkeypatch.setattr(run_lock, "_WRITE_SECONDS", 1.0)


def test_an_owner_elsewhere_lives_while_it_renews_its_lock(tmp_path, quick):
    first = RunLock(tmp_path, "{epoch}.pth")
    first.take()
    edit(first.path, machine="another", host="far", pid=1)
    with pytest.raises(ConfigurationError, match="process 1 on 'far'"):
        RunLock(tmp_path, "{epoch}.pth").take()
    first._stop.set()
    time.sleep(0.5)
    began = time.monotonic()
    second = RunLock(tmp_path, "{epoch}.pth")
    second.take()
    assert time.monotonic() - began < 5
    assert second.predecessor.host == "far"
    with pytest.raises(SaveError, match=rf"another process.*process {os.getpid()}"):
        first.require_held()
    first.release()
    second.require_held()
    assert locks(tmp_path) == [second.path], "who lost the lock leaves it to its owner"
    second.release()


def test_an_old_lock_is_of_a_dead_owner_at_once(tmp_path):
    first = RunLock(tmp_path, "{epoch}.pth")
    first.take()
    edit(first.path, machine="another")
    first._stop.set()
    os.utime(first.path, (1, 1))
    second = RunLock(tmp_path, "{epoch}.pth")
    second.take()
    second.release()
    first.release()


@pytest.mark.parametrize("text", ["", '{"token": "a', "[]"])
def test_a_lock_that_was_never_written_is_taken_over(tmp_path, quick, text):
    lock = RunLock(tmp_path, "{epoch}.pth")
    lock.path.write_text(text)
    lock.take()
    assert LockOwner.read(lock.path).pid == os.getpid()
    lock.release()


# ---- no lock, a lost lock -----------------------------------------------------------------------


def test_a_lock_that_was_deleted_is_made_again(tmp_path):
    lock = RunLock(tmp_path, "{epoch}.pth")
    lock.take()
    lock.path.unlink()
    lock.require_held()
    assert lock.path.exists()
    lock.release()
    assert locks(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_not_locked(tmp_path):
    (tmp_path / "file").touch()
    lock = RunLock(tmp_path / "file" / "run", "{epoch}.pth")
    lock.take()
    lock.require_held()
    lock.name_run("a" * 32)
    lock.release()


def test_a_fork_does_not_release_it(tmp_path):
    lock = RunLock(tmp_path, "{epoch}.pth")
    lock.take()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.path.exists()
    lock.release()


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_release_removes_what_killed_processes_left_under_other_templates(
    tmp_path, holder, is_killed
):
    if is_killed:
        holder.kill()
        holder.wait()
    lock = RunLock(tmp_path / "run", "other.pth")
    lock.take()
    lock.release()
    folder = tmp_path / "run"
    assert folder.exists()
    assert len(locks(folder)) == (0 if is_killed else 1), "the lock of a living process stays"


def test_a_lock_that_comes_and_goes_ends_without_a_lock(tmp_path, monkeypatch):
    """Some file systems show a file that is gone: creating it fails, and so does reading it."""
    monkeypatch.setattr(run_lock, "_TRY_SECONDS", 0.0)
    tried = []

    def create(path, owner):
        tried.append(path)
        raise FileExistsError(path)

    monkeypatch.setattr(run_lock, "_create", create)
    lock = run_lock.RunLock(tmp_path, "{epoch}.pth")
    lock.take()
    assert len(tried) == run_lock._TRIES
    lock.require_held()
    lock.release()


def test_a_file_system_whose_times_stand_still(tmp_path, monkeypatch):
    """The owner on another machine counts as dead by this machine's clock."""
    monkeypatch.setattr(run_lock, "DEAD_SECONDS", 0.3)
    owner = LockOwner(**{**vars(LockOwner.this_process(tmp_path)), "machine": "another"})
    lock = run_lock.RunLock(tmp_path, "{epoch}.pth")
    lock.path.write_bytes(owner.text())
    moment = lock.path.stat().st_mtime
    monkeypatch.setattr(run_lock, "_now", lambda folder: moment)
    lock.take()
    assert lock.predecessor == owner
    lock.release()
