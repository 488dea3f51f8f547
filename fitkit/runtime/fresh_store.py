"""A store in which nothing was said before: torchrun keeps its own when it restarts a run."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

_TOKEN = "fitkit/token"
_PATIENCE_SECONDS = 0.2


def fresh(store: Any, rank: int, size: int) -> Any:
    """A part of ``store`` that only the processes of this start know.

    The main process makes up a name for it, and answers each of the others once. Who finds the name
    of an earlier start gets no answer, and looks again. The number of restarts would not do: agents
    on several machines count them differently.
    """
    name = _invite(store, size) if rank == 0 else _accept(store, rank)
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


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
