"""``on_rank``: a function that runs on one rank only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from fitkit.runtime.joining import current_world

Result = TypeVar("Result")


def on_rank(
    rank: int, *, barrier: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result | None]]:
    """Run a function on one process only; on the others it returns ``None``.

    Args:
        rank: the process.
        barrier: let the others wait until it is done; if it fails there, it fails on all.

    Raises:
        RankError: with ``barrier``, on the others, if it failed.

    >>> @on_rank(0)
    ... def say():
    ...     return "hello"
    >>> say()
    'hello'
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result | None]:
        @functools.wraps(function)
        def on_one(*args: Any, **kwargs: Any) -> Result | None:
            world = current_world()
            if barrier:
                return world.run_on(rank, functools.partial(function, *args, **kwargs))
            if world.rank == rank or world.size == 1:
                return function(*args, **kwargs)
            return None

        return on_one

    return decorate
