"""Rank 0 requests and writes; the others contribute, and know the files of its savers."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fitkit import SaveError
from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks, SaveCommand
from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage.run_record import RunIdentity
from fitkit.core.state import FitState
from fitkit.distributed.world import World


class OneOfTwo:
    """A rank whose broadcasts are recorded; what rank 0 sends is given."""

    is_broken = False

    def __init__(self, rank, heard=()):
        self.rank, self.size, self.is_main = rank, 2, rank == 0
        self.heard, self.said = list(heard), []
        self.elsewhere = 0  # what the other rank says in ``largest``

    def largest(self, values):
        return [max(value, self.elsewhere) for value in values]

    def broadcast(self, value, source=0):
        self.said.append(value)
        return value if self.is_main else self.heard.pop(0)


class Files(Saver):
    """A saver that saves when it is told to."""

    def __init__(self, folder, **options):
        super().__init__(**options)
        self._folder = folder

    @property
    def folder(self):
        return self._folder


class Rank:
    """A rank: its queue, and the source of that."""

    def __init__(self, folder, rank=0, heard=(), **options):
        self.world = OneOfTwo(rank, heard)
        self.contributions = 0
        self.run_identity = RunIdentity()
        self.non_finite = False
        self.announced, self.announce = [], lambda path: self.announced.append(path)
        self.saver = Files(folder, **options)
        self.saver.handler = SimpleNamespace(state=FitState())
        self.queue = SaveQueue(self, ReplicatedRanks(self.world))
        self.saver.handler.saves = self.queue

    def savers(self):
        return [self.saver]

    def identity(self):
        return self.run_identity

    def position(self):
        return (0, 0, 0, 0)

    @contextmanager
    def gathered_from_ranks(self):
        self.contributions += 1
        yield

    def is_non_finite(self):
        return self.non_finite

    def take_snapshot(self, tensor_map):
        return {"format_version": 1}

    def take_weights(self, tensor_map):
        return {}

    def saver_state(self, saver, snapshot):
        return {}

    def is_current(self, path):
        return False

    def request(self, name="one.pth"):
        self.saver.handler.state.global_step += 1
        self.saver.request_save(self.saver.folder / name)


def test_without_a_sync_point_a_request_waits(tmp_path):
    rank = Rank(tmp_path)
    rank.request()
    rank.queue.flush()
    assert not rank.world.said
    assert not list(tmp_path.iterdir())
    rank.queue.sync_point()
    assert rank.queue.is_sync_point
    rank.queue.flush()
    assert rank.announced == [tmp_path / "one.pth"]
    assert not rank.queue.is_sync_point


def test_a_sync_point_without_a_request_costs_one_broadcast(tmp_path):
    rank = Rank(tmp_path)
    rank.queue.sync_point()
    rank.queue.flush()
    assert len(rank.world.said) == 1
    assert rank.contributions == 0
    rank.queue.flush()
    assert len(rank.world.said) == 1


def test_the_others_contribute_if_a_whole_state_is_wanted(tmp_path):
    main = Rank(tmp_path)
    main.request()
    main.queue.sync_point()
    main.queue.flush()
    other = Rank(tmp_path / "other", rank=1, heard=main.world.said)
    other.request()
    other.queue.sync_point()
    other.queue.flush()
    assert (main.contributions, other.contributions) == (1, 1)
    assert not (tmp_path / "other").exists()
    assert other.announced == []


def test_requests_of_other_ranks_do_not_count(tmp_path):
    other = Rank(tmp_path, rank=1, heard=[[Files(tmp_path).file_state()]])
    other.request()
    assert len(other.queue) == 0
    other.queue.sync_point()
    other.queue.flush()
    assert other.saver.requested == ()
    assert not list(tmp_path.iterdir())


def test_all_ranks_know_the_files_afterwards(tmp_path):
    main = Rank(tmp_path)
    for _ in range(2):
        main.request()
        main.queue.sync_point()
        main.queue.flush()
    main.queue.finish()
    other = Rank(tmp_path, rank=1, heard=main.world.said)
    for _ in range(2):
        other.queue.sync_point()
        other.queue.flush()
    other.queue.finish()
    assert other.saver.file_state() == main.saver.file_state()
    assert other.saver.last_path == "one.pth"


def test_weights_alone_need_no_contribution(tmp_path):
    rank = Rank(tmp_path)
    rank.saver.saves_weights_only = True
    rank.request()
    rank.queue.sync_point()
    rank.queue.flush()
    assert rank.contributions == 0
    assert rank.world.said[0] == SaveCommand(whole=False, weights=True, in_background=False)
    assert (tmp_path / "one.pth").exists()


def test_a_sync_point_is_requested_only_if_this_is_none(tmp_path):
    queue = Rank(tmp_path).queue
    queue.request_sync_point()
    assert queue.wants_sync_point
    queue.schedule_sync_point()
    assert queue.is_sync_scheduled
    queue.sync_point()
    queue.request_sync_point()
    assert not queue.wants_sync_point
    queue.flush()
    assert not queue.is_sync_scheduled


def test_no_rank_communicates_after_a_failure(tmp_path):
    rank = Rank(tmp_path)
    rank.request()
    rank.queue.sync_point()
    rank.world.is_broken = True
    rank.queue.flush()
    rank.queue.finish()
    assert not rank.world.said
    assert not list(tmp_path.iterdir())


def flush_and_finish(queue):
    queue.flush()
    queue.finish()


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_leaves_the_saver_as_it_was(tmp_path, background):
    (tmp_path / "file").write_text("no folder")
    rank = Rank(tmp_path / "file", background=background)
    before = rank.saver.file_state()
    rank.request()
    rank.queue.sync_point()
    with pytest.raises(SaveError):
        flush_and_finish(rank.queue)
    assert rank.saver.file_state() == before


def test_with_one_rank_every_event_is_a_sync_point():
    queue = SaveQueue(None, ReplicatedRanks(World()))
    assert queue.is_sync_point
    assert queue.sync_point() is queue.request_sync_point() is queue.schedule_sync_point() is None


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_a_value_that_is_not_finite_anywhere_keeps_rank_0_from_saving(tmp_path, elsewhere):
    rank = Rank(tmp_path)
    rank.world.elsewhere = elsewhere
    rank.queue.sync_point()
    rank.saver.request_save(tmp_path / "a.pth")
    rank.queue.flush()
    assert (tmp_path / "a.pth").exists() is not bool(elsewhere)
