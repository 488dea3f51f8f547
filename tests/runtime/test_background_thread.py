"""BackgroundThread: one piece of work at a time, behind the caller and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from fitkit.runtime.background_thread import BackgroundThread


@pytest.fixture
def thread():
    thread = BackgroundThread("test")
    yield thread
    thread.close()


def test_work_is_done_in_one_other_thread(thread):
    names = []
    for _ in range(3):
        thread.start(lambda: names.append(threading.current_thread().name))
        thread.wait()
    assert names == [names[0]] * 3
    assert names[0].startswith("test")
    thread.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("test")]


def test_it_is_busy_until_the_work_is_done(thread):
    gate = threading.Event()
    assert not thread.is_busy
    thread.wait()
    thread.start(lambda: gate.wait(10))
    assert thread.is_busy
    gate.set()
    thread.wait()
    assert not thread.is_busy


def test_what_the_work_raises_is_raised_where_it_is_waited_for(thread):
    thread.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        thread.wait()
    thread.start(lambda: None)
    thread.wait()


def test_closing_waits_for_the_work(thread):
    done = []
    gate = threading.Event()
    thread.start(lambda: gate.wait(10) and done.append(1))
    threading.Timer(0.05, gate.set).start()
    thread.close()
    assert done == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_its_priority_is_lower_and_that_of_others_is_unchanged(thread):
    before, found = os.getpriority(os.PRIO_PROCESS, 0), []
    thread.start(lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    thread.wait()
    assert found[0] == min(before + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_no_thread_can_be_started(thread, monkeypatch):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    done = []
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start(lambda: done.append(1))
    monkeypatch.undo()
    thread.close()
    assert not done, "the caller does the work itself"


def test_the_end_of_the_process_waits_for_the_work(tmp_path):
    script = (
        "import time\nfrom fitkit.runtime.background_thread import BackgroundThread\n"
        "thread = BackgroundThread('test')\n"
        f"thread.start(lambda: time.sleep(0.2) or open({str(tmp_path / 'a')!r}, 'w').close())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert (tmp_path / "a").exists()
