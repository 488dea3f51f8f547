"""SyncBatchNorm: batch statistics over all ranks of DDP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.parallel import DDPParallel
from fitkit.distributed.world import World


class SyncBatchNormDDP(DDPParallel):
    """One rank of DDP whose BatchNorm layers compute their statistics over all ranks.

    Raises:
        ConfigurationError: the ranks train on the CPU, where torch has no such layer.
    """

    def __init__(self, world: World, device: torch.device, **options: Any) -> None:
        super().__init__(world, **options)
        if world.size > 1 and device.type == "cpu":
            raise ConfigurationError(
                "sync_batchnorm=True needs an accelerator, received the device 'cpu', on which "
                "torch's SyncBatchNorm cannot compute: leave it out, or use GroupNorm or "
                "LayerNorm, which have no statistics over a batch."
            )

    def shard(self, module: nn.Module) -> None:
        """Convert the layers in place; names, parameters and buffers stay the same objects."""
        if self._world.size == 1:
            return
        if isinstance(module, _BatchNorm):
            raise ConfigurationError(
                f"sync_batchnorm=True converts layers inside a model, but the model is a "
                f"{type(module).__name__} itself: put it into a module, such as nn.Sequential."
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
