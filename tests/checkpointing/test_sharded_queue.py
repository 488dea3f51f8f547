"""Every process writes its part when the main one wants it: two of them, as threads."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fitkit import RankError, SaveError
from fitkit.checkpointing import sharded_queue
from fitkit.checkpointing.saver import Saver
from fitkit.checkpointing.sharded_queue import Part, ShardedQueue
from fitkit.core.state import FitState


class Told(queue.Queue):
    """What the main process says, to one of the others."""


class OneOfTwo:
    """A process that hears the main one through a queue."""

    is_broken = False

    def __init__(self, rank, told):
        self.rank, self.size, self.is_main = rank, 2, rank == 0
        self.told = told

    def largest(self, values):
        return values

    def broadcast(self, value, source=0):
        if self.is_main:
            self.told.put(value)
            return value
        return self.told.get(timeout=10)


class Files(Saver):
    """A saver that does as it is told."""

    def __init__(self, folder, **options):
        super().__init__(**options)
        self._folder = folder

    @property
    def folder(self):
        return self._folder


class Process:
    """A queue with everything around it."""

    def __init__(self, rank, folder, told, beside, **options):
        self.value = torch.zeros(())
        self.saver = Files(folder, **options)
        self.saver.handler = SimpleNamespace(state=FitState())
        self.contributions, self.announced = 0, []
        self.queue = ShardedQueue(
            OneOfTwo(rank, told),
            OneOfTwo(rank, beside),
            savers=lambda: [self.saver],
            contributions=self._contributed,
            is_non_finite=lambda: False,
            take_snapshot=self._taken,
            take_weights=lambda place: {"weights": place(self.value)},
            is_current=lambda path: False,
            announce=self.announced.append,
            key_of=lambda saver: "saver",
        )
        self.saver.handler.saves = self.queue

    def _taken(self, place):
        state = {"saver": {"state": {}}}
        return {"callback_states": state, "value": place(self.value)}

    @contextmanager
    def _contributed(self):
        self.contributions += 1
        yield

    def ask(self, name="one.pth"):
        state = self.saver.handler.state
        state.global_step += 1
        self.saver.ask(self.saver.folder / name)


@pytest.fixture
def written():
    """What each process wrote: rank, content, path."""
    return []


@pytest.fixture
def failing():
    """Names of files that cannot be written."""
    return set()


@pytest.fixture
def two(tmp_path, monkeypatch, written, failing):
    """Makes two processes; a folder of shards is a list, and who leads tells the other."""

    def write(content, path, also=(), *, world):
        is_whole = path.name not in failing
        written.append((0, float(_value_of(content)), path.name))
        world.broadcast(path.name)
        world.broadcast(is_whole)
        if not is_whole:
            raise SaveError(f"could not save to {str(path)!r}", path)
        for name in (path, *also):
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(b"PK\x03\x04")

    def take_part(content, world):
        name = world.broadcast(None)
        written.append((1, float(_value_of(content)), name))
        return world.broadcast(None)

    monkeypatch.setattr(sharded_queue.sharded, "write", write)
    monkeypatch.setattr(sharded_queue.sharded, "take_part", take_part)
    made = []

    def make(**options):
        told, beside = Told(), Told()
        made.extend(Process(rank, tmp_path, told, beside, **options) for rank in (0, 1))
        return made

    yield make
    for process in made:
        process.queue._writer.close()


def _value_of(content):
    return content["value"] if "value" in content else content["weights"]


def at_once(*actions):
    """Run an action of each process at the same time; what each raised."""
    errors = [None] * len(actions)

    def act(number, action):
        try:
            action()
        except BaseException as error:  # noqa: BLE001  this is what is looked at
            errors[number] = error

    threads = [threading.Thread(target=act, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return errors


def meet(processes):
    def act(process):
        process.queue.meet()
        process.queue.settle()

    return at_once(*(lambda one=one: act(one) for one in processes))


def save_each(processes, count):
    """Ask for a file, and let training change the value, several times."""
    for number in range(count):
        for process in processes:
            process.value.fill_(number)
            process.ask(f"{number}.pth")
        assert meet(processes) == [None, None]
    assert finish(processes) == [None, None]


def finish(processes):
    return at_once(*(one.queue.finish for one in processes))


@pytest.mark.parametrize("background", [False, True])
def test_each_writes_its_part_of_one_moment(two, written, background):
    processes = two(background=background)
    for number in range(3):
        for process in processes:
            process.value.fill_(number)
            process.ask(f"{number}.pth")
        assert meet(processes) == [None, None]
        for process in processes:
            process.value.fill_(-1.0)  # training goes on
    assert finish(processes) == [None, None]
    expected = [(rank, float(number), f"{number}.pth") for number in range(3) for rank in (0, 1)]
    assert sorted(written) == sorted(expected)
    main, other = processes
    assert [path.name for path in main.announced] == ["0.pth", "1.pth", "2.pth"]
    assert other.announced == []
    assert main.saver.planned() == other.saver.planned()


def test_weights_alone_need_no_contribution(two, written):
    processes = two()
    for process in processes:
        process.saver.saves_weights_only = True
        process.ask()
    assert meet(processes) == [None, None]
    assert [process.contributions for process in processes] == [0, 0]
    assert sorted(written) == [(0, 0.0, "one.pth"), (1, 0.0, "one.pth")]


def test_a_meeting_without_a_wish_writes_nothing(two, written):
    processes = two(background=True)
    assert meet(processes) == [None, None]
    assert finish(processes) == [None, None]
    assert written == []


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_is_told_by_the_main_process(two, failing, background):
    processes = two(background=background)
    before = processes[0].saver.planned()
    failing.add("one.pth")
    for process in processes:
        process.ask()
    errors = meet(processes)
    if background:
        assert errors == [None, None]
        errors = finish(processes)
    assert isinstance(errors[0], SaveError)
    assert errors[1] is None  # it hears of it as of any failure of another
    assert processes[0].saver.planned() == processes[1].saver.planned() == before


def test_after_a_warning_both_go_on(two, failing, written):
    processes = two(background=True, on_error="warn")
    failing.add("0.pth")
    with pytest.warns(RuntimeWarning, match="could not save"):
        save_each(processes, 3)
    assert [path.name for path in processes[0].announced] == ["1.pth", "2.pth"]
    assert processes[0].saver.planned() == processes[1].saver.planned()
    assert {one for one in written if one[2] == "2.pth"} == {(0, 2.0, "2.pth"), (1, 2.0, "2.pth")}


def test_what_is_left_of_a_save_that_failed_is_written_with_what_was_given_then(
    two, failing, written
):
    """Of two files of one event the first fails: the second is written from the same copies."""
    processes = two(background=True, on_error="warn")
    failing.add("a.pth")
    for process in processes:
        process.value.fill_(7.0)
        process.ask("a.pth")
        weights = Files(process.saver.folder, background=True, on_error="warn")
        weights.handler, weights.saves_weights_only = process.saver.handler, True
        process.queue._savers = lambda p=process, w=weights: [p.saver, w]
        weights.ask(process.saver.folder / "w.pth")
    assert meet(processes) == [None, None]
    for process in processes:
        process.value.fill_(-1.0)
    with pytest.warns(RuntimeWarning, match="could not save"):
        assert finish(processes) == [None, None]
    assert [one for one in written if one[2] == "w.pth"] == [(0, 7.0, "w.pth"), (1, 7.0, "w.pth")]


def test_save_now_is_of_all(two, failing, written, tmp_path):
    processes = two()
    failing.add("b.pth")
    for name in ("a.pth", "b.pth"):
        content, path = {"value": torch.ones(())}, tmp_path / name
        errors = at_once(*(partial(one.queue.save_now, content, path) for one in processes))
        if name == "a.pth":
            assert errors == [None, None]
    assert isinstance(errors[0], SaveError)
    assert isinstance(errors[1], RankError)
    assert "b.pth" in str(errors[1])
    assert sorted(written) == sorted((r, 1.0, n) for n in ("a.pth", "b.pth") for r in (0, 1))


def test_all_wait_for_what_is_under_way(two, written):
    processes = two(background=True)
    for process in processes:
        process.ask()
    meet(processes)
    assert at_once(*(one.queue.wait for one in processes)) == [None, None]
    assert len(written) == 2
    assert not any(one.queue.is_busy for one in processes)


def test_who_is_left_alone_does_not_wait(two, written):
    processes = two(background=True)
    for process in processes:
        process.ask()
    meet(processes)
    for process in processes:
        process.queue._writer.wait()
        process.queue._world.is_broken = True
        assert finish([process]) == [None]


def test_a_part_that_cannot_be_written_is_raised_where_training_hears_it(two, monkeypatch):
    processes = two(background=True)

    def fail(content, world):
        world.broadcast(None)
        world.broadcast(None)
        raise ConnectionError("gone")

    monkeypatch.setattr(sharded_queue.sharded, "take_part", fail)
    for number in range(2):
        for process in processes:
            process.ask(f"{number}.pth")
        errors = meet(processes)
        if errors[1] is not None:
            break
    assert isinstance(errors[1], ConnectionError)
    processes[0].queue._writer.wait()


def test_a_part_writes_what_is_wanted_until_one_fails(monkeypatch):
    seen = []

    def take_part(content, world):
        seen.append(content)
        return content != "fails"

    monkeypatch.setattr(sharded_queue.sharded, "take_part", take_part)
    part = Part(["whole", "fails", "weights"], None)
    part.run()
    assert (seen, part.error) == (["whole", "fails"], None)
