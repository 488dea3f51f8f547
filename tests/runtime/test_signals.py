import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fitkit.runtime.signals import SignalWatch


def send(number):
    """Send a signal to this process and let Python's handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.fixture
def with_handler():
    """Installs a handler for one test."""
    previous = {}

    def install(number, handler):
        previous.setdefault(number, signal.getsignal(number))
        signal.signal(number, handler)

    yield install
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_nothing_else_happens(number):
    with SignalWatch() as watch:
        assert watch.received is None
        send(number)
        assert watch.received is number


def test_the_first_signal_is_kept():
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert watch.received is signal.SIGTERM


def test_a_second_ctrl_c_interrupts_at_once():
    with SignalWatch() as watch:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert watch.received is signal.SIGINT


def test_ctrl_c_after_sigterm_interrupts():
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert watch.received is signal.SIGTERM


@pytest.mark.parametrize("error", [None, ValueError])
def test_every_handler_is_put_back(with_handler, error):
    def own(number, frame):
        pass

    with_handler(signal.SIGTERM, own)
    before = signal.getsignal(signal.SIGINT)
    try:
        with SignalWatch():
            assert signal.getsignal(signal.SIGTERM) is not own
            if error is not None:
                raise error
    except ValueError:
        pass
    assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_program_still_runs_each_time(with_handler):
    heard = []
    with_handler(signal.SIGINT, lambda number, frame: heard.append((number, frame is not None)))
    with SignalWatch() as watch:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert watch.received is signal.SIGINT
    assert heard == [(signal.SIGINT, True)] * 2


def test_a_handler_that_raises_raises(with_handler):
    def own(number, frame):
        raise RuntimeError("mine")

    with_handler(signal.SIGTERM, own)
    with SignalWatch() as watch:
        with pytest.raises(RuntimeError, match="mine"):
            send(signal.SIGTERM)
        assert watch.received is signal.SIGTERM


def test_an_ignored_signal_stays_ignored(with_handler):
    with_handler(signal.SIGTERM, signal.SIG_IGN)
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        assert watch.received is None


def test_a_handler_that_could_not_be_put_back_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    installed = []
    monkeypatch.setattr(signal, "signal", lambda *args: installed.append(args))
    with SignalWatch():
        pass
    assert installed == []


def test_other_signals_can_be_watched_and_the_rest_is_not():
    before = signal.getsignal(signal.SIGTERM)
    with SignalWatch([signal.SIGUSR1]) as watch:
        assert signal.getsignal(signal.SIGTERM) is before
        send(signal.SIGUSR1)
        assert watch.received is signal.SIGUSR1


def test_outside_the_main_thread_it_watches_nothing():
    found, before = [], signal.getsignal(signal.SIGINT)

    def watch():
        with SignalWatch():
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [True]


def test_watches_nest_and_both_hear():
    with SignalWatch() as outer:
        with SignalWatch() as inner:
            send(signal.SIGTERM)
        assert inner.received is outer.received is signal.SIGTERM


def run_script(body):
    script = "import os, signal, sys, time\nfrom fitkit.runtime.signals import SignalWatch\n" + body
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_process_goes_on_inside_and_dies_by_default_afterwards():
    body = """
with SignalWatch() as watch:
    print("ready", flush=True)
    while watch.received is None:
        time.sleep(0.01)
    print("noted", watch.received.name, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""
    with run_script(body) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert out == "noted SIGTERM\n"
    assert err == ""
    assert process.returncode == -signal.SIGTERM


def test_a_forked_child_dies_of_sigterm_and_leaves_ctrl_c_to_its_parent():
    body = """
with SignalWatch() as watch:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    print("alive", os.waitpid(child, os.WNOHANG)[0] == 0, flush=True)
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    print("ended by", signal.Signals(os.WTERMSIG(status)).name, watch.received, flush=True)
"""
    with run_script(body) as process:
        out, err = process.communicate(timeout=60)
    assert err == ""
    assert out == "alive True\nended by SIGTERM None\n"
