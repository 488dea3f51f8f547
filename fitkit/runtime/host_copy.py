"""HostCopies: tensors copied into host memory that is used again for the next copy."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

_Key = tuple[Any, ...]


class HostCopies:
    """Copies of the tensors of one snapshot, in memory that the next one takes over.

    ``reserve`` memory for each tensor, ``fetch`` them all at once, and ``wait`` before the copies
    are read. They are valid until the next ``reserve`` after a ``fetch``.

    Tensors of an accelerator are copied into pinned memory on a stream of their own: the program
    goes on at once, and only kernels that would change them wait, on the device.
    """

    def __init__(self) -> None:
        self._free: dict[_Key, list[Tensor]] = {}
        self._taken: dict[_Key, list[Tensor]] = defaultdict(list)
        self._targets: dict[_Key, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._events: list[torch.cuda.Event] = []

    def reserve(self, tensor: Tensor) -> Tensor:
        """The memory that ``tensor`` will be copied to; tensors that share memory still do."""
        identity = _identity(tensor)
        target = self._targets.get(identity)
        if target is None:
            target = self._targets[identity] = self._take(tensor)
            self._pairs.append((tensor, target))
        return target

    def _take(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.detach().to("cpu", copy=True)
        key = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_cuda)
        free = self._free.get(key)
        if free:
            target = free.pop()
        else:
            target = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._taken[key].append(target)
        return target

    @torch.no_grad()
    def fetch(self) -> None:
        """Copy every tensor that memory was reserved for."""
        pairs = [pair for pair in self._pairs if pair[0].layout is torch.strided]
        here = [pair for pair in pairs if not pair[0].is_cuda]
        if here:
            torch._foreach_copy_([target for _, target in here], [source for source, _ in here])
        for device in {source.device for source, _ in pairs if source.is_cuda}:
            self._fetch_from(device, [pair for pair in pairs if pair[0].device == device])
        self._free, self._taken = self._taken, defaultdict(list)
        self._targets, self._pairs = {}, []

    def _fetch_from(self, device: torch.device, pairs: list[tuple[Tensor, Tensor]]) -> None:
        stream = _stream_of(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
        event = stream.record_event()
        torch.cuda.current_stream(device).wait_event(event)
        self._events.append(event)

    def wait(self) -> None:
        """Wait until every copy is there."""
        for event in self._events:
            event.synchronize()
        self._events = []


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream_of(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


def _identity(tensor: Tensor) -> _Key:
    """What two tensors have in common if they are the same memory seen the same way."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return (id(tensor),)
    bits = (tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), bits)
