"""Separates the store of this start from earlier ones: torchrun keeps its store across restarts."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

_TOKEN = "fitkit/token"
_RETRY_SECONDS = 0.2
_STORE_TIMEOUT_SECONDS = 30


def agree_on_prefix(store: Any, rank: int, size: int) -> str:
    """A prefix for keys of ``store`` that only the ranks of this start know.

    Rank 0 chooses it and answers each other rank once. A rank that reads the prefix of an earlier
    start gets no answer and reads again. The number of restarts would not do: agents on several
    machines count them differently.
    """
    return _publish_prefix(store, size) if rank == 0 else _confirm_prefix(store, rank)


def _publish_prefix(store: Any, size: int) -> str:
    prefix = uuid4().hex
    store.set(_TOKEN, prefix)
    for rank in range(1, size):
        store.set(f"{prefix}/go/{rank}", store.get(f"{prefix}/here/{rank}"))
    return prefix


def _confirm_prefix(store: Any, rank: int) -> str:
    nonce = uuid4().hex
    while True:
        prefix = store.get(_TOKEN).decode()
        store.set(f"{prefix}/here/{rank}", nonce)
        try:
            store.wait([f"{prefix}/go/{rank}"], timedelta(seconds=_RETRY_SECONDS))
        except dist.DistStoreError:
            continue
        if store.get(f"{prefix}/go/{rank}").decode() == nonce:
            return str(prefix)
        time.sleep(_RETRY_SECONDS)


def with_prefix(store: Any, prefix: str) -> Any:
    """The keys of ``store`` that begin with ``prefix``."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def without_prefix(store: Any) -> Any:
    """The store inside any number of ``PrefixStore``."""
    has_prefix = isinstance(store, dist.PrefixStore)  # type: ignore[attr-defined]
    return store._underlying_non_prefix_store if has_prefix else store  # noqa: SLF001  no public form


def second_connection(store: Any) -> Any:
    """The same store over another connection; stores without connections are returned as they are.

    A connection serves one call at a time, so a thread that polls the store would be blocked by a
    ``get`` that waits for another rank.
    """
    if not isinstance(store, dist.TCPStore):  # type: ignore[attr-defined]
        return store
    # as ``clone`` does, which torch 2.6 lacks
    connection: Any = dist.TCPStore(  # type: ignore[attr-defined]
        store.host, store.port, is_master=False, wait_for_workers=False
    )
    connection.set_timeout(timedelta(seconds=_STORE_TIMEOUT_SECONDS))
    connection.check([_TOKEN])  # the answer shows that the server has this connection too
    return connection
