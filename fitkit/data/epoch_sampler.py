"""EpochSampler: an order of samples that depends on (seed, epoch) only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fitkit.runtime.rng import derive_seed


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``range(num_samples)``, int64 of shape ``(num_samples,)``."""
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(num_samples, generator=generator, device="cpu")


class EpochSampler(Sampler[int]):
    """Shuffles a dataset differently in each epoch, which ``set_epoch`` sets."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order: list[int] = epoch_order(self._num_samples, self._seed, self._epoch).tolist()
        return iter(order)

    def __len__(self) -> int:
        return self._num_samples
