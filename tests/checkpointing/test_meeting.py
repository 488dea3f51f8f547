"""The main process asks and writes; the others are there, and know what its savers know."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fitkit import SaveError
from fitkit.checkpointing.meeting import MeetingQueue
from fitkit.checkpointing.save_queue import SaveQueue
from fitkit.checkpointing.saver import Saver
from fitkit.core.state import FitState


class OneOfTwo:
    """A process whose meetings are written down; what the main one says is given."""

    is_broken = False

    def __init__(self, rank, heard=()):
        self.rank, self.is_main = rank, rank == 0
        self.heard, self.said = list(heard), []
        self.elsewhere = 0  # what the other process says where the largest is asked for

    def largest(self, values):
        return [max(value, self.elsewhere) for value in values]

    def broadcast(self, value, source=0):
        self.said.append(value)
        return value if self.is_main else self.heard.pop(0)


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

    def __init__(self, folder, rank=0, heard=(), **options):
        self.world = OneOfTwo(rank, heard)
        self.contributions = 0
        self.non_finite = False
        self.announced = []
        self.saver = Files(folder, **options)
        self.saver.handler = SimpleNamespace(state=FitState())
        self.queue = MeetingQueue(
            self.world,
            lambda: [self.saver],
            self._contributed,
            lambda: self.non_finite,
            take_snapshot=lambda place: {"format_version": 1},
            take_weights=lambda place: {},
            is_current=lambda path: False,
            announce=self.announced.append,
            key_of=lambda saver: "saver",
        )
        self.saver.handler.saves = self.queue

    @contextmanager
    def _contributed(self):
        self.contributions += 1
        yield

    def ask(self, name="one.pth"):
        self.saver.handler.state.global_step += 1
        self.saver.ask(self.saver.folder / name)


def test_without_a_meeting_a_request_waits(tmp_path):
    process = Process(tmp_path)
    process.ask()
    process.queue.settle()
    assert not process.world.said
    assert not list(tmp_path.iterdir())
    process.queue.meet()
    assert process.queue.is_meeting
    process.queue.settle()
    assert process.announced == [tmp_path / "one.pth"]
    assert not process.queue.is_meeting


def test_a_meeting_without_a_request_costs_one_message(tmp_path):
    process = Process(tmp_path)
    process.queue.meet()
    process.queue.settle()
    assert len(process.world.said) == 1
    assert process.contributions == 0
    process.queue.settle()
    assert len(process.world.said) == 1


def test_the_others_contribute_if_a_whole_state_is_wanted(tmp_path):
    main = Process(tmp_path)
    main.ask()
    main.queue.meet()
    main.queue.settle()
    other = Process(tmp_path / "other", rank=1, heard=main.world.said)
    other.ask()
    other.queue.meet()
    other.queue.settle()
    assert (main.contributions, other.contributions) == (1, 1)
    assert not (tmp_path / "other").exists()
    assert other.announced == []


def test_the_others_own_wishes_do_not_count(tmp_path):
    other = Process(tmp_path, rank=1, heard=[[Files(tmp_path).planned()]])
    other.ask()
    assert len(other.queue) == 0
    other.queue.meet()
    other.queue.settle()
    assert other.saver.asked == ()
    assert not list(tmp_path.iterdir())


def test_at_the_end_all_know_the_files(tmp_path):
    main = Process(tmp_path)
    for _ in range(2):
        main.ask()
        main.queue.meet()
        main.queue.settle()
    main.queue.finish()
    other = Process(tmp_path, rank=1, heard=main.world.said)
    for _ in range(2):
        other.queue.meet()
        other.queue.settle()
    other.queue.finish()
    assert other.saver.planned() == main.saver.planned()
    assert other.saver.last_path == "one.pth"


def test_weights_alone_need_no_contribution(tmp_path):
    process = Process(tmp_path)
    process.saver.saves_weights_only = True
    process.ask()
    process.queue.meet()
    process.queue.settle()
    assert process.contributions == 0
    assert process.world.said[0][0] is False
    assert (tmp_path / "one.pth").exists()


def test_a_wish_is_one_only_while_nobody_meets(tmp_path):
    queue = Process(tmp_path).queue
    queue.wish()
    assert queue.wishes_to_meet
    queue.invite()
    assert queue.is_invited
    queue.meet()
    queue.wish()
    assert not queue.wishes_to_meet
    queue.settle()
    assert not queue.is_invited


def test_nobody_meets_when_a_process_has_failed(tmp_path):
    process = Process(tmp_path)
    process.ask()
    process.queue.meet()
    process.world.is_broken = True
    process.queue.settle()
    process.queue.finish()
    assert not process.world.said
    assert not list(tmp_path.iterdir())


def _bring_to_an_end(queue):
    queue.settle()
    queue.finish()


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_leaves_the_saver_as_it_was(tmp_path, background):
    (tmp_path / "file").write_text("no folder")
    process = Process(tmp_path / "file", background=background)
    before = process.saver.planned()
    process.ask()
    process.queue.meet()
    with pytest.raises(SaveError):
        _bring_to_an_end(process.queue)
    assert process.saver.planned() == before


def test_one_process_always_meets():
    queue = SaveQueue(*[lambda *_: None] * 5)
    assert queue.is_meeting
    assert queue.meet() is queue.wish() is queue.invite() is None


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_a_value_that_is_not_finite_anywhere_keeps_the_main_process_from_saving(
    tmp_path, elsewhere
):
    process = Process(tmp_path)
    process.world.elsewhere = elsewhere
    process.queue.meet()
    process.saver.ask(tmp_path / "a.pth")
    process.queue.settle()
    assert (tmp_path / "a.pth").exists() is not bool(elsewhere)
