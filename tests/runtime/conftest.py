"""A process group of this process alone."""

from __future__ import annotations

import gc

import pytest
import torch.distributed as dist


@pytest.fixture
def mesh():
    """A mesh of one process, in a group that ends with the test."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        gc.collect()
        dist.destroy_process_group()
        gc.collect()
