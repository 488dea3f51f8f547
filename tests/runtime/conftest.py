"""Process groups of this process alone."""

from __future__ import annotations

import gc

import pytest
import torch.distributed as dist


@pytest.fixture
def group():
    """Makes torch's default group, which ends with the test.

    A group of more ranks than one is torch's own stand-in, in which no other rank ever answers.
    """

    def make(backend, rank=0, size=1):
        from torch.testing._internal.distributed.fake_pg import FakeStore

        store = dist.HashStore() if size == 1 else FakeStore()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return dist.group.WORLD

    yield make
    gc.collect()  # what holds a group keeps its threads
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def mesh(group):
    """A mesh of one process."""
    from torch.distributed.device_mesh import init_device_mesh

    group("gloo")
    return init_device_mesh("cpu", (1,))


@pytest.fixture
def one_of_three(group):
    """Makes the mesh of three ranks, as one of them has it."""
    from torch.distributed.device_mesh import init_device_mesh

    def make(kind, rank):
        group("fake", rank, 3)
        return init_device_mesh(kind, (3,))

    return make
