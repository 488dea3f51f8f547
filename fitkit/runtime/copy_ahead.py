"""CopyAhead: batches go to an accelerator on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fitkit.core.tree import map_leaves
from fitkit.runtime.device import is_on_host, to_device


class CopyStream(Protocol):
    """Where copies are made: ``CudaCopyStream``, or what stands in for it in tests."""

    def aside(self) -> AbstractContextManager[Any]:
        """A context whose copies do not wait for the computation that was begun before."""

    def join(self, copies: list[Tensor]) -> None:
        """Computation that is begun from now on waits for ``copies``, and may use them."""


class CudaCopyStream:
    """A stream of CUDA beside the one that computes.

    Args:
        device: the accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self) -> AbstractContextManager[Any]:
        """A context whose copies do not wait for the computation that was begun before."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def join(self, copies: list[Tensor]) -> None:
        """Computation that is begun from now on waits for ``copies``, and may use them."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for copy in copies:  # their memory is not given away before that computation is done
            copy.record_stream(computing)


class CopyAhead:
    """Moves a batch to ``device`` beside the computation that is still under way there.

    A program that reads nothing runs ahead of its accelerator: when it fetches a batch, the device
    is still busy with those before. So nothing has to be fetched early, and positions and random
    streams are what they are without it.

    Args:
        device: the accelerator.
        stream: where copies are made.
    """

    def __init__(self, device: torch.device, stream: CopyStream) -> None:
        self._device = device
        self._stream = stream

    def __call__(self, batch: Any) -> Any:
        """The batch with its tensors on the device."""
        copies: list[Tensor] = []
        with self._stream.aside():
            moved = map_leaves(lambda leaf: self._copied(leaf, copies), batch)
        if copies:
            self._stream.join(copies)
        # whatever else knows how to move does so where it is used
        return to_device(moved, self._device)

    def _copied(self, leaf: Any, copies: list[Tensor]) -> Any:
        if type(leaf) is not Tensor or not is_on_host(leaf):
            return leaf
        copies.append(leaf.to(self._device, non_blocking=True))
        return copies[-1]


def make_place(device: torch.device) -> Callable[[Any], Any]:
    """The function that moves batches to ``device``."""
    if device.type == "cuda":
        return CopyAhead(device, CudaCopyStream(device))
    return partial(to_device, device=device)
