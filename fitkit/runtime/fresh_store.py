"""A store in which nothing was said before: torchrun keeps its own when it restarts a run."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

_TOKEN = "fitkit/token"
_PATIENCE_SECONDS = 0.2
_LOOK_SECONDS = 30


def fresh_name(store: Any, rank: int, size: int) -> str:
    """A name that only the processes of this start know, for their part of ``store``.

    The main process makes it up, and answers each of the others once. Who finds the name of an
    earlier start gets no answer, and looks again. The number of restarts would not do: agents on
    several machines count them differently.
    """
    return _invite(store, size) if rank == 0 else _accept(store, rank)


def part_of(store: Any, name: str) -> Any:
    """The keys of ``store`` that begin with ``name``."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def without_prefix(store: Any) -> Any:
    """The store that prefixes were put around."""
    is_part = isinstance(store, dist.PrefixStore)  # type: ignore[attr-defined]
    return store._underlying_non_prefix_store if is_part else store  # noqa: SLF001  no public form


def reconnected(store: Any) -> Any:
    """``store``, without prefixes, over a connection of its own.

    A connection serves one call at a time: a thread that only looks would wait behind a ``get``
    that waits for another process. Stores without connections look without waiting.
    """
    if not isinstance(store, dist.TCPStore):  # type: ignore[attr-defined]
        return store
    # as ``clone`` does, which torch 2.6 lacks
    again: Any = dist.TCPStore(  # type: ignore[attr-defined]
        store.host, store.port, is_master=False, wait_for_workers=False
    )
    again.set_timeout(timedelta(seconds=_LOOK_SECONDS))
    again.check([_TOKEN])  # the answer shows that the other end has this connection too
    return again


def _invite(store: Any, size: int) -> str:
    name = uuid4().hex
    store.set(_TOKEN, name)
    for rank in range(1, size):
        store.set(f"{name}/go/{rank}", store.get(f"{name}/here/{rank}"))
    return name


def _accept(store: Any, rank: int) -> str:
    own = uuid4().hex
    while True:
        name = store.get(_TOKEN).decode()
        store.set(f"{name}/here/{rank}", own)
        try:
            store.wait([f"{name}/go/{rank}"], timedelta(seconds=_PATIENCE_SECONDS))
        except dist.DistStoreError:
            continue
        if store.get(f"{name}/go/{rank}").decode() == own:
            return str(name)
        time.sleep(_PATIENCE_SECONDS)
