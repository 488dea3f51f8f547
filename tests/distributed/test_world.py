"""What ranks say to each other, as one of them can see it; several are in tests/distributed."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fitkit.core.errors import ConfigurationError, RankError
from fitkit.distributed.distributed_world import DistributedWorld
from fitkit.distributed.failures import failure_of_another
from fitkit.distributed.process_group import new_host_group
from fitkit.distributed.rank_info import RankInfo
from fitkit.distributed.world import World

CPU = torch.device("cpu")


def test_what_one_process_says_to_itself():
    world, sums = World(), torch.tensor([1.0, 2.0])
    assert world.sum(sums) is sums
    assert world.largest([1, 2]) == [1, 2]
    assert world.gather("a") == world.gather_all("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.copy_from_main([sums]) is None
    world.sum_in_place(sums)
    world.set_timeout(timedelta(seconds=1))
    assert sums.tolist() == [1.0, 2.0]
    assert world.run_on(0, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        world.run_on(0, lambda: 1 / 0)
    error = ValueError("mine")
    assert world.fail(error) is error
    assert not world.is_broken


def test_the_error_of_another_process_says_which():
    error = RankError(3, "ValueError: boom")
    assert str(error) == "rank 3 failed, and with it the run: ValueError: boom"
    assert (error.rank, error.told) == (3, "ValueError: boom")


def test_one_process_is_its_own_side_group():
    world = World()
    assert world.side_group() is world
    assert world.group is None
    assert world.group_for(CPU) is None


# ---- a process group ----------------------------------------------------------------------------


class Watch:
    """A failure watch that has heard of a failure, or not."""

    def __init__(self, failure=None):
        self.failure, self.done = failure, []

    def stop(self):
        self.done.append("stop")

    def abort(self):
        self.done.append("abort")

    def report(self, failure, *, is_own):
        self.failure, self.is_own = failure, is_own


@pytest.fixture
def default_group(group):
    """torch's default group, of this process alone, with no backend for host tensors."""
    return group("cuda:gloo")


@pytest.fixture
def processes(default_group):
    """Makes one rank of ``size``, beside that group."""

    def make(size=1, watch=None, rank=0, store=None):
        info = RankInfo(rank, size, rank, "env://")
        group = new_host_group(None, {})
        return DistributedWorld(store or dist.HashStore(), info, {}, group, watch=watch)

    return make


def test_host_tensors_and_objects_go_through_the_group_that_takes_them(processes):
    world, sums = processes(), torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert world.sum(sums).tolist() == [1.0, 2.0]
    assert world.sum(sums) is not sums
    world.sum_in_place(sums)
    world.copy_from_main([sums])
    assert world.largest([3, 4]) == [3, 4]
    assert world.gather("a") == world.gather_all("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.run_on(0, lambda: 5) == 5
    assert world.side_group().gather_all("a") == ["a"]
    assert world.side_group() is world.side_group()


def test_lazy_parameters_cannot_be_shared(processes):
    with pytest.raises(ConfigurationError, match=r"lazy parameters that have no.*one batch"):
        processes().copy_from_main(nn.LazyLinear(2).parameters())


def test_tensors_of_a_device_go_through_the_default_group(processes):
    world = processes()
    assert world.group_for(torch.device("cuda", 0)) is None
    assert world.group_for(CPU) is world.group is not None
    assert world.side_group().group_for(CPU) not in (None, world.group)


def test_the_time_out_is_that_of_all_groups(processes, default_group):
    world = processes()
    world.side_group()
    world.set_timeout(timedelta(seconds=4))
    found = [(default_group, "cuda"), (world.group, "cpu"), (world.side_group().group, "cpu")]
    for group, device in found:
        options = group._get_backend(torch.device(device)).options
        assert options._timeout == timedelta(seconds=4)


def test_a_group_side_group_has_the_time_out_too(processes):
    world = processes()
    world.set_timeout(timedelta(seconds=4))
    backend = world.side_group().group._get_backend(CPU)
    assert backend.options._timeout == timedelta(seconds=4)


@pytest.mark.parametrize(
    "speak",
    [
        lambda world: world.sum(torch.ones(1)),
        lambda world: world.sum_in_place(torch.ones(1)),
        lambda world: world.largest([1]),
        lambda world: world.gather("a"),
        lambda world: world.gather_all("a"),
        lambda world: world.broadcast("a"),
        lambda world: world.run_on(0, lambda: 1),
        lambda world: world.copy_from_main([torch.ones(1)]),
        lambda world: world.side_group().gather_all("a"),
    ],
)
def test_whoever_goes_on_after_an_abort_hears_of_the_failure_first(speak, processes):
    watch = Watch()
    world = processes(watch=watch)
    world.side_group()
    watch.failure = RankError(1, "boom")
    with pytest.raises(RankError, match="rank 1 failed, and with it the run: boom"):
        speak(world)


def test_a_failure_stops_the_watch_and_then_aborts(processes):
    watch = Watch()
    world, error = processes(2, watch), ValueError("boom")
    assert world.fail(error) is error
    assert (world.is_broken, watch.done) == (True, ["stop", "abort"])


def test_the_first_failure_is_that_of_all(processes):
    store, watch = dist.HashStore(), Watch()
    first, second = (processes(2, watch, rank, store) for rank in (0, 1))
    error = ValueError("boom")
    assert first.fail(error) is error
    reported = second.fail(RuntimeError("the communicator was aborted"))
    assert (reported.rank, reported.told) == (0, "ValueError: boom")
    assert second.fail(reported) is reported
    assert watch.done == ["stop", "abort"] * 2


def test_a_failure_in_the_side_group_is_left_to_the_thread_that_trains(processes):
    """Its collective may be almost finished on the other ranks."""
    watch, error = Watch(), OSError("bad disk")
    world = processes(watch=watch)
    assert world.side_group().fail(error) is error
    assert watch.done == []
    assert watch.is_own
    assert not world.is_broken
    with pytest.raises(RankError, match="bad disk"):
        world.in_step()


def test_the_side_group_tells_apart_whose_failure_it_has_met(processes):
    store, watch = dist.HashStore(), Watch()
    processes(2, rank=1, store=store).fail(ValueError("boom"))
    side = processes(watch=watch, store=store).side_group()
    assert side.fail(RuntimeError("Connection closed by peer")).rank == 1
    assert (watch.failure.rank, watch.is_own) == (1, False)


def test_without_the_store_a_failure_is_its_own(processes):
    def compare_set(*arguments):
        raise dist.DistNetworkError("Broken pipe")

    error = ValueError("boom")
    world = processes(2, store=SimpleNamespace(compare_set=compare_set, set=compare_set))
    assert world.fail(error) is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_end_that_this_rank_has_raised_stays_after_a_failure_of_another(kind, processes):
    store, error = dist.HashStore(), kind()
    processes(2, Watch(), 0, store).fail(ValueError("boom"))
    world = processes(2, Watch(), 1, store)
    assert world.fail(error) is error
    with pytest.raises(RankError, match=r"boom.*fit needs all ranks"), world.call("fit"):
        pass


def test_an_error_of_a_collective_is_not_one_that_all_ranks_raise(processes):
    """They may all raise it, as when the timeout is over; the connections are gone then."""
    world, error = processes(2), RuntimeError("[gloo/transport/tcp/pair.cc:1] Timed out")
    began = time.monotonic()
    assert world.first_error(error) is error
    assert world.is_broken
    assert time.monotonic() - began < 0.9


def test_an_error_of_all_ranks_leaves_the_group_whole(processes):
    """Each rank has it once more in the call that surrounds the place."""
    world = processes()

    def fit(error):
        with world.call("fit"):
            raise world.first_error(error)

    for error in (ValueError("one"), OSError("two")):
        with pytest.raises(type(error)):
            fit(error)
    assert not world.is_broken


def test_an_error_of_one_rank_alone_is_told(processes):
    store = dist.HashStore()
    world, error = processes(2, store=store), ValueError("boom")
    assert world.first_error(error) is error
    assert world.is_broken
    assert failure_of_another(store, 1).told == "ValueError: boom"


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_groups_of_fitkit_are_destroyed_in_the_end(is_ours, processes, default_group):
    watch = Watch()
    world = processes(watch=watch)
    side = [world.group, world.side_group().group]
    world.leave(is_ours=is_ours)
    assert watch.done == ["stop"]
    assert (world.group, world.side_group is None) == (None, False)
    assert dist.is_initialized() is not is_ours
    left = dist.distributed_c10d._world.pg_map
    assert not [group for group in side if group in left]
    assert (default_group in left) is not is_ours


@pytest.mark.parametrize("failed", ["own", "other"])
def test_after_a_failure_backends_are_aborted_before_they_are_destroyed(failed, processes):
    watch = Watch(RankError(1, "boom") if failed == "other" else None)
    world = processes(watch=watch)
    world.is_broken = failed == "own"
    world.leave(is_ours=True)
    assert watch.done == ["stop", "abort"]


def test_the_program_may_have_destroyed_everything(processes):
    world = processes()
    world.side_group()
    dist.destroy_process_group()
    world.leave(is_ours=False)
    assert world.group is None


def test_the_program_may_have_begun_anew(processes):
    world = processes()
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world.leave(is_ours=False)
    assert dist.is_initialized()
