from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import DDP, ConfigurationError
from fitkit.distributed.sync_batchnorm import SyncBatchNormDDP
from fitkit.distributed.world import World


class Two(World):
    """The first of two ranks."""

    size = 2


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(5)))


def test_several_ranks_convert_every_layer_and_keep_names_and_parameters():
    module = model()
    names, parameters = list(module.state_dict()), list(module.parameters())
    parallel = DDP(sync_batchnorm=True).bind(Two(), torch.device("cuda"))
    parallel.shard(module)
    assert [type(one) for one in module.modules()].count(nn.SyncBatchNorm) == 2
    assert list(module.state_dict()) == names
    assert all(one is two for one, two in zip(module.parameters(), parameters, strict=True))
    alone = model()
    alone.load_state_dict(module.state_dict())  # what is saved loads without the option


def test_a_single_rank_converts_nothing():
    module = model()
    DDP(sync_batchnorm=True).bind(World(), torch.device("cpu")).shard(module)
    assert not any(isinstance(one, nn.SyncBatchNorm) for one in module.modules())


def test_without_the_option_nothing_is_converted():
    assert not isinstance(DDP().bind(Two(), torch.device("cuda")), SyncBatchNormDDP)


def test_the_cpu_is_refused_before_the_first_batch():
    with pytest.raises(ConfigurationError, match=r"needs an accelerator, received .*'cpu'"):
        DDP(sync_batchnorm=True).bind(Two(), torch.device("cpu"))


def test_a_model_that_is_a_layer_itself_is_refused():
    parallel = DDP(sync_batchnorm=True).bind(Two(), torch.device("cuda"))
    with pytest.raises(ConfigurationError, match="is a BatchNorm2d itself"):
        parallel.shard(nn.BatchNorm2d(3))


def test_the_option_is_shown():
    assert repr(DDP(sync_batchnorm=True)) == "DDP(sync_batchnorm=True)"
