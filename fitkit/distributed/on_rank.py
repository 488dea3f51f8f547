"""on_rank: decorator for functions that run on some of the ranks only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.alone import alone, is_alone
from fitkit.distributed.join_world import current_world
from fitkit.distributed.world import World

Result = TypeVar("Result")


def on_rank(
    rank: int | Sequence[int], *, barrier: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result | None]]:
    """Run a function on one rank, or on several, only; on the others it returns ``None``.

    The other ranks do not run it, so the function must not call what needs all of them: ``fit``,
    or ``handler.save`` in the middle of an epoch, raise a ``ConfigurationError``. ``evaluate`` and
    ``predict`` work inside, on the whole data, and a handler that is created inside is that of a
    single process. In a program of one process the function runs, whatever the rank.

    Args:
        rank: the rank, from 0, or a list, tuple or range of ranks.
        barrier: the ranks wait for each other until it has returned; if it raises on one, all
            raise.

    Raises:
        ConfigurationError: ``rank`` is no rank; where there are fewer ranks, at the call.
        RankError: with ``barrier``, on the other ranks, if it raised.

    >>> @on_rank(0)
    ... def say():
    ...     return "hello"
    >>> say()
    'hello'
    """
    ranks = _as_ranks(rank)

    def decorate(function: Callable[..., Result]) -> Callable[..., Result | None]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Result | None:
            world = World() if is_alone() else current_world()
            if world.size == 1:
                return function(*args, **kwargs)
            if max(ranks) >= world.size:
                raise ConfigurationError(
                    f"on_rank got the rank {max(ranks)}, but there are {world.size} ranks: pass "
                    f"ranks from 0 to {world.size - 1}."
                )
            if barrier:
                return world.run_on(ranks, functools.partial(function, *args, **kwargs))
            if world.rank not in ranks:
                return None
            with alone():
                return function(*args, **kwargs)

        return wrapper

    return decorate


def _as_ranks(rank: int | Sequence[int]) -> tuple[int, ...]:
    ranks = tuple(rank) if isinstance(rank, (list, tuple, range)) else (rank,)
    for one in ranks:
        if not isinstance(one, int) or isinstance(one, bool) or one < 0:
            raise ConfigurationError(
                f"on_rank takes a rank, a whole number from 0, or a list of ranks, received "
                f"{rank!r}."
            )
    if not ranks:
        raise ConfigurationError("on_rank got no rank: pass at least one, such as on_rank(0).")
    return ranks
