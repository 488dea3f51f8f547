"""on_rank: decorator for functions that run on one rank only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from fitkit.distributed.join_world import current_world

Result = TypeVar("Result")


def on_rank(
    rank: int, *, barrier: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result | None]]:
    """Run a function on one rank only; on the others it returns ``None``.

    Args:
        rank: the rank.
        barrier: the other ranks wait until it has returned; if it raises, all of them raise.

    Raises:
        RankError: with ``barrier``, on the other ranks, if it raised.

    >>> @on_rank(0)
    ... def say():
    ...     return "hello"
    >>> say()
    'hello'
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result | None]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Result | None:
            world = current_world()
            if barrier:
                return world.run_on(rank, functools.partial(function, *args, **kwargs))
            if world.rank == rank or world.size == 1:
                return function(*args, **kwargs)
            return None

        return wrapper

    return decorate
