"""HostStaging: copies tensors into host memory that is reused by the next snapshot."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import torch
from torch import Tensor

_Key = tuple[Any, ...]


class HostStaging:
    """Host copies of the tensors of one snapshot, in memory that the next snapshot reuses.

    ``reserve`` memory for each tensor, ``fetch`` them all at once, and ``wait`` before the copies
    are read. They are valid until the next ``reserve`` after a ``fetch``.

    CUDA tensors are copied into pinned memory on a separate stream. The host does not wait, and
    only later kernels of the current stream do, so that they cannot change the tensors first.
    """

    def __init__(self) -> None:
        self._free: dict[_Key, list[Tensor]] = {}
        self._taken: dict[_Key, list[Tensor]] = defaultdict(list)
        self._targets: dict[_Key, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._events: list[torch.cuda.Event] = []

    def reserve(self, tensor: Tensor) -> Tensor:
        """The memory that ``tensor`` will be copied to; equal views of one memory get one copy."""
        if tensor.layout is not torch.strided:
            return tensor.detach().to("cpu", copy=True)
        kind = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_cuda)
        key = _memory_key(tensor, kind)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = self._take(tensor, kind)
            self._pairs.append((tensor, target))
        return target

    def _take(self, tensor: Tensor, key: _Key) -> Tensor:
        free = self._free.get(key)
        if free:
            target = free.pop()
        else:
            target = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._taken[key].append(target)
        return target

    @torch.no_grad()
    def fetch(self) -> None:
        """Copy all tensors for which memory was reserved."""
        pairs = self._pairs
        on_host = [pair for pair in pairs if not pair[0].is_cuda]
        if on_host:
            sources, targets = zip(*on_host, strict=True)
            torch._foreach_copy_(targets, sources)
        for device in {source.device for source, _ in pairs if source.is_cuda}:
            self._fetch_from(device, [pair for pair in pairs if pair[0].device == device])
        self._free, self._taken = self._taken, defaultdict(list)
        self._targets, self._pairs = {}, []

    def _fetch_from(self, device: torch.device, pairs: list[tuple[Tensor, Tensor]]) -> None:
        stream = _copy_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        event = stream.record_event()
        torch.cuda.current_stream(device).wait_event(event)
        self._events.append(event)

    def wait(self) -> None:
        """Wait until all copies are complete."""
        for event in self._events:
            event.synchronize()
        self._events = []


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _memory_key(tensor: Tensor, kind: _Key) -> _Key:
    """Equal for tensors that are the same view of the same memory."""
    memory = tensor.data_ptr() or id(tensor)  # an empty one has no memory
    return memory, tensor.device, tensor.is_conj(), tensor.is_neg(), kind
