"""Values of any size as tensors of bytes, of which most fit into one collective."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LENGTH_BYTES = 8
_ROOM = 4096  # bytes of a first part; torch's collectives of objects send the length before

Exchange = Callable[[Tensor], Sequence[Tensor]]


def exchange(value: Any, exchange_bytes: Exchange) -> list[Any]:
    """The values of all ranks that take part, in one collective, or two if some are large.

    Args:
        value: of this rank; can be pickled.
        exchange_bytes: a collective, which takes the bytes of this rank and returns those of the
            ranks that ``value`` is wanted from, all of one length.
    """
    content = pickle.dumps(value)
    head = len(content).to_bytes(_LENGTH_BYTES, "little")
    heads = exchange_bytes(_as_tensor(head + content[:_ROOM], _LENGTH_BYTES + _ROOM))
    received = [bytes(part.numpy()) for part in heads]
    lengths = [int.from_bytes(part[:_LENGTH_BYTES], "little") for part in received]
    contents = [part[_LENGTH_BYTES:] for part in received]
    longest = max(lengths)
    if longest > _ROOM:
        rests = exchange_bytes(_as_tensor(content[_ROOM:], longest - _ROOM))
        contents = [a + bytes(b.numpy()) for a, b in zip(contents, rests, strict=True)]
    return [pickle.loads(all_[:n]) for all_, n in zip(contents, lengths, strict=True)]


def _as_tensor(content: bytes, size: int) -> Tensor:
    """The first ``size`` bytes of ``content`` and zeros."""
    return torch.frombuffer(bytearray(content[:size].ljust(size, b"\0")), dtype=torch.uint8)
