"""Signals to the whole process group of a run with DataLoader workers; real processes."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fitkit.data.loader_workers import WorkerStart, start_iterator
from fitkit.runtime.signals import SignalWatch

SCRIPT = Path(__file__).parents[1] / "scripts" / "workers_run.py"
needs_senders = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)
pytestmark = needs_senders
# a worker removes its socket while the program removes the folder of it, in Python's own code: the
# loser of that race prints a traceback
LOST_RACE = re.compile(
    r"Traceback \(most recent call last\):\n"
    r"  File \".*multiprocessing.util\.py\"(?:.*\n  )+.*\n"
    r"\w*Error: .*[/\\]pymp-.*\n"
)
NEW_START = "fit found no checkpoint to resume from: training begins anew.\n"


def start(folder, *arguments, launcher=()):
    command = [sys.executable, "-W", "ignore", *launcher, str(SCRIPT), *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(group):
    """The processes of a group that are alive."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,pid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pgid, pid, state in rows if int(pgid) == group and state[0] != "Z"]


def kill_group_when_ready(folder, *arguments, number=signal.SIGTERM, times=1, launcher=()):
    with start(folder, *arguments, launcher=launcher) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for _ in range(times):
            time.sleep(0.02)
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
    deadline = time.monotonic() + 20
    while (left := processes_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    return process.returncode, LOST_RACE.sub("", err)


def finish(folder, *arguments):
    with start(folder, *arguments) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return torch.load(folder / "end.pth")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    ends = {}

    def end(*arguments):
        if arguments not in ends:
            ends[arguments] = finish(tmp_path_factory.mktemp("whole"), *arguments)
        return ends[arguments]

    return end


KINDS = [
    pytest.param("map", "fork", marks=pytest.mark.slow),
    pytest.param("map", "spawn", marks=pytest.mark.slow),
    pytest.param("map", "forkserver", marks=pytest.mark.slow),
    pytest.param("persistent", "fork", marks=pytest.mark.slow),
    pytest.param("iterable", "fork", marks=pytest.mark.slow),
    pytest.param("iterable", "spawn", marks=pytest.mark.slow),
    pytest.param("stateful", "fork", marks=pytest.mark.slow),
    pytest.param("wrapped", "fork", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "context"), KINDS)
@pytest.mark.filterwarnings("ignore:.*cannot seek:UserWarning")
def test_the_batch_is_finished_and_the_run_goes_on_exactly(tmp_path, uninterrupted, kind, context):
    code, err = kill_group_when_ready(tmp_path, kind, context)
    assert (code, err) == (143, NEW_START)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["preempted.pth"]
    if kind in ("persistent", "iterable"):  # the loader's own function runs, too
        assert sorted((tmp_path / "workers.txt").read_text().split()) == ["0", "1"]
    end = finish(tmp_path, kind, context)
    whole = uninterrupted(kind, "fork")
    assert all(torch.equal(end[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_signals_that_come_again_and_other_signals(tmp_path):
    code, err = kill_group_when_ready(tmp_path, "map", "fork", times=3)
    assert (code, err) == (143, NEW_START)
    (tmp_path / "other").mkdir()
    code, err = kill_group_when_ready(tmp_path / "other", "map", "fork", number=signal.SIGUSR1)
    assert (code, err) == (128 + signal.SIGUSR1, NEW_START)
    for folder in (tmp_path, tmp_path / "other"):
        assert [path.name for path in (folder / "run").iterdir()] == ["preempted.pth"]


@pytest.mark.slow
def test_workers_of_the_validation_data_live_on_too(tmp_path, uninterrupted):
    code, err = kill_group_when_ready(tmp_path, "persistent", "fork", "test")
    assert (code, err) == (143, NEW_START)
    end, whole = (
        finish(tmp_path, "persistent", "fork", "test"),
        uninterrupted("persistent", "fork", "test"),
    )
    assert all(torch.equal(end[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_by_its_parent(tmp_path):
    finish(tmp_path, "stuck", "fork")


@pytest.mark.slow
def test_two_ranks_under_torchrun(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    code, err = kill_group_when_ready(tmp_path, "map", "fork", launcher=torchrun)
    assert code != 0
    assert "DataLoader worker" not in err
    assert (tmp_path / "run" / "preempted.pth").exists()


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def own_function(worker_id):
    pass


def test_a_worker_that_is_killed_is_the_error_of_torch():
    with (
        SignalWatch(),
        pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(Killed|exited)"),
    ):
        list(start_iterator(DataLoader(Killed(), num_workers=1, batch_size=2)))


class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return os.getpid()


def end_worker(iterator):
    """Send SIGTERM to the worker of an iterator from another process."""
    pid = int(next(iterator))
    subprocess.run(["kill", "-TERM", str(pid)], check=True)
    time.sleep(0.5)


def test_workers_ignore_strangers_while_signals_are_watched():
    loader = DataLoader(Pids(), num_workers=1, worker_init_fn=own_function)
    with SignalWatch():
        iterator = start_iterator(loader)
    assert loader.worker_init_fn is own_function
    end_worker(iterator)
    assert len(list(iterator)) == 3


def fail(iterator):
    end_worker(iterator)
    list(iterator)


def test_other_workers_are_as_torch_makes_them():
    with SignalWatch():
        pass
    iterator = start_iterator(DataLoader(Pids(), num_workers=1))
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*Terminated"):
        fail(iterator)


def test_other_iterables_and_loaders_without_workers_are_left_alone():
    with SignalWatch():
        assert list(start_iterator([1, 2])) == [1, 2]
        assert len(list(start_iterator(DataLoader(Pids())))) == 4


def test_the_masks_of_this_process_stay_as_they_were():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with SignalWatch():
        list(start_iterator(DataLoader(Pids(), num_workers=1)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_it_can_be_sent_to_a_process_that_is_spawned():
    pickle.loads(pickle.dumps(WorkerStart([signal.SIGTERM], own_function)))


def test_a_fork_waits_for_the_lock_of_the_list_of_threads():
    # which thread holds it at a fork is chance; that the list is read before shows as audit events;
    # Python 3.12 needs none of it
    code = """if True:
        import os, sys
        import fitkit.data.loader_workers
        events = []
        sys.addaudithook(lambda event, _: events.append(event))
        if not os.fork():
            os._exit(0)
        os.wait()
        print([event for event in events if event in ("sys._current_frames", "os.fork")])
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reads = ["sys._current_frames"] if sys.version_info < (3, 12) else []
    assert found.stdout == f"{['os.fork', *reads]}\n"


# ---- torch's label for each batch ---------------------------------------------------------------


class Counted(IterableDataset):
    """Five numbers, of which it may announce fewer."""

    def __init__(self, announced=None):
        if announced is not None:
            self.announced = announced
            self.__class__ = Announced

    def __iter__(self):
        return iter(range(5))


class Announced(Counted):
    def __len__(self):
        return self.announced


LOADERS = {
    "map-style": lambda: DataLoader(list(range(5)), 2),
    "iterable": lambda: DataLoader(Counted(), 2),
    "drop_last": lambda: DataLoader(Counted(), 2, drop_last=True),
    "without batches": lambda: DataLoader(Counted(), batch_size=None),
    "a sampler": lambda: DataLoader(list(range(5)), 2, sampler=[4, 0, 3]),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_those_of_torch_s_iterator(kind):
    found = start_iterator(LOADERS[kind]())
    expected = list(LOADERS[kind]())
    assert iter(found) is found
    assert list(map(str, found)) == list(map(str, expected))
    assert next(found, "end") == "end"


def test_the_label_is_there_only_for_a_profiler():
    iterator = start_iterator(DataLoader(Counted(), 1))
    labels = []
    for is_profiled in (False, True):
        with torch.profiler.profile(acc_events=True) if is_profiled else nullcontext() as found:
            next(iterator)
        labels += [] if found is None else [event.key for event in found.key_averages()]
    assert any("DataLoader" in label and "__next__" in label for label in labels)
    loader = DataLoader(Counted(), 1)
    calls, own = [], torch.autograd.profiler.record_function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.autograd.profiler, "record_function", lambda n: (calls.append(n), own(n))[1]
        )
        list(start_iterator(loader))
    assert calls == []


def test_torch_still_warns_of_a_wrong_length():
    loader = DataLoader(Counted(announced=3), 1)
    assert len(loader) == 3
    with pytest.warns(UserWarning, match="was reported to be 3"):
        assert len(list(start_iterator(loader))) == 5


def test_an_error_in_the_data_set_is_the_same():
    class Broken(Counted):
        def __iter__(self):
            yield 1
            raise OSError("disk")

    iterator = start_iterator(DataLoader(Broken(), 1))
    assert next(iterator) == 1
    with pytest.raises(OSError, match="disk"):
        next(iterator)


def test_iterators_of_other_kinds_are_left_as_they_are():
    for batches in ([1, 2], (one for one in (1, 2)), DataLoader([1, 2], num_workers=1)):
        iterator = start_iterator(batches)
        assert type(iterator) is type(iter(batches))
