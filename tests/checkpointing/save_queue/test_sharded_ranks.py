"""Every rank writes its part when rank 0 saves: two ranks, as threads."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fitkit import RankError, SaveError
from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.checkpointing.save_queue.sharded_ranks import ShardedRanks
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import sharded_checkpoint
from fitkit.checkpointing.storage.run_record import RunIdentity
from fitkit.core.state import FitState


class Broadcasts(queue.Queue):
    """What rank 0 broadcasts to the other rank."""


class OneOfTwo:
    """A rank that receives broadcasts of rank 0 through a queue."""

    is_broken = False

    def __init__(self, rank, broadcasts):
        self.rank, self.size, self.is_main = rank, 2, rank == 0
        self.broadcasts = broadcasts

    def largest(self, values):
        return values

    def fail(self, error):
        return error

    def broadcast(self, value, source=0):
        if self.is_main:
            self.broadcasts.put(value)
            return value
        return self.broadcasts.get(timeout=10)


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

    def __init__(self, rank, folder, broadcasts, side_group, **options):
        self.value = torch.zeros(())
        self._identity = RunIdentity()
        self.saver = Files(folder, **options)
        self.saver.handler = SimpleNamespace(state=FitState())
        self.contributions, self.announced = 0, []
        self.world = OneOfTwo(rank, broadcasts)
        self.queue = SaveQueue(self, ShardedRanks(self.world, OneOfTwo(rank, side_group)))
        self.savers = lambda: [self.saver]
        self.saver.handler.saves = self.queue

    def take_snapshot(self, tensor_map):
        return {"value": tensor_map(self.value)}

    def take_weights(self, tensor_map):
        return {"weights": tensor_map(self.value)}

    def saver_state(self, saver, snapshot):
        return snapshot.setdefault("saver", {})

    def identity(self):
        return self._identity

    def position(self):
        return (0, 0, 0, 0)

    def is_current(self, path):
        return False

    def is_non_finite(self):
        return False

    def announce(self, path):
        self.announced.append(path)

    @contextmanager
    def gathered_from_ranks(self):
        self.contributions += 1
        yield

    def request(self, name="one.pth"):
        self.saver.handler.state.global_step += 1
        self.saver.request_save(self.saver.folder / name)


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
    """Makes two ranks; a folder of shards is a list, and who leads tells the other."""

    def write(content, path, also=(), *, world, record=None):
        is_whole = path.name not in failing
        written.append((0, float(_value_of(content)), path.name))
        world.broadcast(path.name)
        world.broadcast(is_whole)
        if not is_whole:
            raise SaveError(f"could not save to {str(path)!r}", path)
        for name in (path, *also):
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(b"PK\x03\x04")

    def write_own_shards(content, world):
        name = world.broadcast(None)
        written.append((1, float(_value_of(content)), name))
        return world.broadcast(None)

    monkeypatch.setattr(sharded_checkpoint, "write", write)
    monkeypatch.setattr(sharded_checkpoint, "write_own_shards", write_own_shards)
    made = []

    def make(**options):
        broadcasts, side_group = Broadcasts(), Broadcasts()
        made.extend(Rank(rank, tmp_path, broadcasts, side_group, **options) for rank in (0, 1))
        return made

    return make


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


def sync_point(ranks):
    def act(rank):
        rank.queue.sync_point()
        rank.queue.flush()

    return at_once(*(lambda one=one: act(one) for one in ranks))


def save_each(ranks, count):
    """Ask for a file, and let training change the value, several times."""
    for number in range(count):
        for rank in ranks:
            rank.value.fill_(number)
            rank.request(f"{number}.pth")
        assert sync_point(ranks) == [None, None]
    assert finish(ranks) == [None, None]


def finish(ranks):
    return at_once(*(one.queue.finish for one in ranks))


@pytest.mark.parametrize("background", [False, True])
def test_each_writes_its_part_of_one_moment(two, written, background):
    ranks = two(background=background)
    for number in range(3):
        for rank in ranks:
            rank.value.fill_(number)
            rank.request(f"{number}.pth")
        assert sync_point(ranks) == [None, None]
        for rank in ranks:
            rank.value.fill_(-1.0)  # training goes on
    assert finish(ranks) == [None, None]
    expected = [(rank, float(number), f"{number}.pth") for number in range(3) for rank in (0, 1)]
    assert sorted(written) == sorted(expected)
    main, other = ranks
    assert [path.name for path in main.announced] == ["0.pth", "1.pth", "2.pth"]
    assert other.announced == []
    assert main.saver.file_state() == other.saver.file_state()


def test_weights_alone_need_no_contribution(two, written):
    ranks = two()
    for rank in ranks:
        rank.saver.saves_weights_only = True
        rank.request()
    assert sync_point(ranks) == [None, None]
    assert [rank.contributions for rank in ranks] == [0, 0]
    assert sorted(written) == [(0, 0.0, "one.pth"), (1, 0.0, "one.pth")]


def test_a_sync_point_without_a_request_writes_nothing(two, written):
    ranks = two(background=True)
    assert sync_point(ranks) == [None, None]
    assert finish(ranks) == [None, None]
    assert written == []


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_is_raised_on_rank_0(two, failing, background):
    ranks = two(background=background)
    before = ranks[0].saver.file_state()
    failing.add("one.pth")
    for rank in ranks:
        rank.request()
    errors = sync_point(ranks)
    if background:
        assert errors == [None, None]
        errors = finish(ranks)
    assert isinstance(errors[0], SaveError)
    assert errors[1] is None  # it hears of it as of any failure of another
    assert ranks[0].saver.file_state() == ranks[1].saver.file_state() == before


def test_after_a_warning_both_ranks_go_on(two, failing, written):
    ranks = two(background=True, on_error="warn")
    failing.add("0.pth")
    with pytest.warns(RuntimeWarning, match="could not save"):
        save_each(ranks, 3)
    assert [path.name for path in ranks[0].announced] == ["1.pth", "2.pth"]
    assert ranks[0].saver.file_state() == ranks[1].saver.file_state()
    assert {one for one in written if one[2] == "2.pth"} == {(0, 2.0, "2.pth"), (1, 2.0, "2.pth")}


def test_what_is_left_of_a_save_that_failed_is_written_from_the_same_copies(two, failing, written):
    """Of two files of one event the first fails: the second is written from the same copies."""
    ranks = two(background=True, on_error="warn")
    failing.add("a.pth")
    for rank in ranks:
        rank.value.fill_(7.0)
        rank.request("a.pth")
        weights = Files(rank.saver.folder, background=True, on_error="warn")
        weights.handler, weights.saves_weights_only = rank.saver.handler, True
        rank.savers = lambda p=rank, w=weights: [p.saver, w]
        weights.request_save(rank.saver.folder / "w.pth")
    assert sync_point(ranks) == [None, None]
    for rank in ranks:
        rank.value.fill_(-1.0)
    with pytest.warns(RuntimeWarning, match="could not save"):
        assert finish(ranks) == [None, None]
    assert [one for one in written if one[2] == "w.pth"] == [(0, 7.0, "w.pth"), (1, 7.0, "w.pth")]


def test_save_now_writes_the_parts_of_all_ranks(two, failing, written, tmp_path):
    ranks = two()
    failing.add("b.pth")
    for name in ("a.pth", "b.pth"):
        content, path = {"value": torch.ones(())}, tmp_path / name
        errors = at_once(*(partial(one.queue.save_now, content, path) for one in ranks))
        if name == "a.pth":
            assert errors == [None, None]
    assert isinstance(errors[0], SaveError)
    assert isinstance(errors[1], RankError)
    assert "b.pth" in str(errors[1])
    assert sorted(written) == sorted((r, 1.0, n) for n in ("a.pth", "b.pth") for r in (0, 1))


def test_all_ranks_wait_for_the_save_in_flight(two, written):
    ranks = two(background=True)
    for rank in ranks:
        rank.request()
    sync_point(ranks)
    assert at_once(*(one.queue.wait for one in ranks)) == [None, None]
    assert len(written) == 2
    assert not any(one.queue.is_busy for one in ranks)
    assert finish(ranks) == [None, None]


def test_a_hook_of_rank_0_may_wait_for_saves(two, written):
    ranks = two()
    main = ranks[0]
    main.announce = lambda path: main.queue.wait()
    for number in range(2):
        for rank in ranks:
            rank.request(f"{number}.pth")
        assert sync_point(ranks) == [None, None]
    assert sorted(name for _, _, name in written) == ["0.pth", "0.pth", "1.pth", "1.pth"]
    assert main.world.broadcasts.empty(), "rank 0 sends nothing that no rank receives"


def test_a_rank_does_not_wait_for_one_that_failed(two, written):
    ranks = two(background=True)
    for rank in ranks:
        rank.request()
    sync_point(ranks)
    for rank in ranks:
        rank.world.is_broken = True
        assert finish([rank]) == [None]


def test_a_part_that_cannot_be_written_is_raised_where_training_hears_it(two, monkeypatch):
    ranks = two(background=True)

    def fail(content, world):
        world.broadcast(None)
        world.broadcast(None)
        raise ConnectionError("gone")

    monkeypatch.setattr(sharded_checkpoint, "write_own_shards", fail)
    for number in range(2):
        for rank in ranks:
            rank.request(f"{number}.pth")
        errors = sync_point(ranks)
        if errors[1] is not None:
            break
    assert isinstance(errors[1], ConnectionError)
    for rank in ranks:
        rank.world.is_broken = True
        assert finish([rank]) == [None]


def test_a_rank_writes_its_part_of_what_rank_0_writes(monkeypatch):
    seen = []
    monkeypatch.setattr(
        sharded_checkpoint, "write_own_shards", lambda content, world: seen.append(content)
    )
    side_group = Broadcasts()
    for weights_only in (False, True, False, None):
        side_group.put(weights_only)
    ranks = ShardedRanks(OneOfTwo(1, Broadcasts()), OneOfTwo(1, side_group))
    ranks.write_parts("whole", "weights")
    assert seen == ["whole", "weights", "whole"]


def test_other_ranks_are_told_of_a_part_that_cannot_be_written(monkeypatch):
    """Rank 0 waits for the thread of this rank, and training on this rank for rank 0."""

    def fail(content, world):
        raise ConnectionError("gone")

    monkeypatch.setattr(sharded_checkpoint, "write_own_shards", fail)
    side_group, told = Broadcasts(), []
    side_group.put(False)
    side_world = OneOfTwo(1, side_group)
    side_world.fail = lambda error: told.append(error) or RankError(1, str(error))
    with pytest.raises(RankError, match="gone"):
        ShardedRanks(OneOfTwo(1, Broadcasts()), side_world).write_parts("whole", "weights")
    assert [str(error) for error in told] == ["gone"]
