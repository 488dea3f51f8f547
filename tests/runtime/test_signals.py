import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import fitkit.runtime.signals as signals_module
from fitkit.runtime.signals import SignalWatch, leave_to_parent, signals_blocked, watched_signals


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
        watch.is_answered = True


def test_the_first_signal_is_kept():
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert watch.received is signal.SIGTERM
        watch.is_answered = True


def test_a_second_ctrl_c_interrupts_at_once():
    with SignalWatch() as watch:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert watch.is_answered
    assert watch.received is signal.SIGINT


def test_ctrl_c_after_sigterm_interrupts():
    with SignalWatch() as watch:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert watch.received is signal.SIGTERM
        assert not watch.is_answered
        watch.is_answered = True


def test_sigterm_takes_the_place_of_ctrl_c_and_is_yet_to_be_answered():
    with SignalWatch() as watch:
        send(signal.SIGINT)
        watch.is_answered = True
        send(signal.SIGTERM)
        assert (watch.received, watch.is_answered) == (signal.SIGTERM, False)
        watch.is_answered = True


def test_what_nobody_has_answered_is_sent_again_at_the_end(with_handler):
    with pytest.raises(KeyboardInterrupt), SignalWatch():
        send(signal.SIGINT)
    heard = []
    with_handler(signal.SIGTERM, lambda number, frame: heard.append(number))
    with SignalWatch():
        send(signal.SIGTERM)
    assert heard == [signal.SIGTERM], "a handler of the program hears it once"

    def fail():
        with SignalWatch():
            send(signal.SIGINT)
            raise ValueError("an error comes first")

    with pytest.raises(ValueError, match="first"):
        fail()


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
        watch.is_answered = True


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
        outer.is_answered = True


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
    watch.is_answered = True
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


# ---- workers ------------------------------------------------------------------------------------

needs_senders = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)


def test_the_watched_signals_are_those_of_all_watches_that_are_open():
    assert watched_signals() == []
    with SignalWatch([signal.SIGTERM]):
        assert watched_signals() == [signal.SIGTERM]
        with SignalWatch([signal.SIGUSR1]):
            assert set(watched_signals()) == {signal.SIGTERM, signal.SIGUSR1}
    assert watched_signals() == []


WORKER = """
import multiprocessing, signal, subprocess, sys, time
from fitkit.runtime.signals import leave_to_parent

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]

def work(ready):
    leave_to_parent(SIGNALS)
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    for number in SIGNALS:
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    worker.join(0.5)
    print(worker.is_alive())
    worker.terminate()
    worker.join(20)
    print(worker.exitcode)
"""


@needs_senders
@pytest.mark.parametrize(
    "method",
    ["fork", *(pytest.param(one, marks=pytest.mark.slow) for one in ("spawn", "forkserver"))],
)
def test_a_worker_heeds_its_parent_only(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    result = subprocess.run([sys.executable, script, method], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout.split() == ["True", "0"]


@needs_senders
def test_a_child_of_a_worker_and_ctrl_c_are_not_held_back():
    body = """
import warnings
warnings.simplefilter("ignore")  # of Python 3.12 on, as a library may have threads
from fitkit.runtime.signals import signals_blocked, leave_to_parent
with signals_blocked([signal.SIGINT, signal.SIGTERM]):
    worker = os.fork()
if worker == 0:
    leave_to_parent([signal.SIGINT, signal.SIGTERM])
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
    child = os.fork()
    if child == 0:
        print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    os._exit(0)
os.waitpid(worker, 0)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
"""
    with run_script(body) as process:
        out, err = process.communicate(timeout=60)
    assert err == ""
    assert out.splitlines() == ["{<Signals.SIGTERM: 15>}", "set()", "set()"]


@needs_senders
def test_a_signal_that_is_held_back_comes_afterwards():
    with SignalWatch() as watch:
        with signals_blocked([signal.SIGTERM]):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            assert watch.received is None
        time.sleep(0)
        assert watch.received is signal.SIGTERM
        watch.is_answered = True


def test_without_senders_workers_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(signals_module, "_CAN_TELL_SENDERS", False)
    before, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    try:
        with signals_blocked([signal.SIGTERM]):
            leave_to_parent([signal.SIGTERM])
        assert threading.active_count() == threads
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGINT, before)
