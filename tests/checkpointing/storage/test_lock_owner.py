"""LockOwner: whether the process that made a lock file still lives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from fitkit.checkpointing.storage import lock_owner
from fitkit.checkpointing.storage.lock_owner import LockOwner


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def owner_at(path, process=None):
    owner = LockOwner.this_process(path)
    if process is not None:
        started = lock_owner._start_of(process.pid)
        owner = replace(owner, pid=process.pid, started=started)
    path.write_bytes(owner.text())
    return owner


def test_it_is_written_and_read(tmp_path):
    owner = replace(owner_at(tmp_path / "lock"), run_id="a" * 32)
    (tmp_path / "lock").write_bytes(owner.text())
    assert LockOwner.read(tmp_path / "lock") == owner
    assert str(os.getpid()) in str(owner)
    assert owner.since in str(owner)
    assert owner.is_on_this_machine
    assert not replace(owner, machine="another").is_on_this_machine


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "[" * 100_000])
def test_what_is_not_whole_has_no_owner(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    assert LockOwner.read(tmp_path / "lock") is None
    owner = json.loads(LockOwner.this_process(tmp_path / "lock").text())
    for change in ({"pid": "1"}, {"host": 3}, {"more": 1}, {"run_id": []}):
        (tmp_path / "lock").write_text(json.dumps({**owner, **change}))
        assert LockOwner.read(tmp_path / "lock") is None


def test_this_process_lives_here_but_not_in_a_copy_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    owner = owner_at(tmp_path / "run" / "lock")
    assert owner.lives_here(tmp_path / "run" / "lock")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert not owner.lives_here(tmp_path / "copy" / "lock")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert owner.lives_here(tmp_path / "link" / "lock")


@pytest.mark.parametrize("has_proc", [True, False])
def test_stopped_lives_killed_does_not(tmp_path, sleeper, has_proc, monkeypatch):
    owner = owner_at(tmp_path / "lock", sleeper)
    if not has_proc:
        monkeypatch.setattr(lock_owner, "_PROC", tmp_path / "no")
        owner = replace(owner, started="")
        assert LockOwner.this_process(tmp_path / "lock").machine == owner.host
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert owner.lives_here(tmp_path / "lock")
    sleeper.kill()
    if has_proc:  # nobody has asked how it ended
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert not owner.lives_here(tmp_path / "lock")
    sleeper.wait()
    assert not owner.lives_here(tmp_path / "lock")


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path, sleeper):
    owner = replace(owner_at(tmp_path / "lock", sleeper), started="1")
    assert not owner.lives_here(tmp_path / "lock")
