"""Decorators for the methods of a handler that all ranks call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.alone import is_alone
from fitkit.distributed.world import World
from fitkit.handler.base_handler import BaseHandler

Method = TypeVar("Method", bound=Callable[..., Any])


def together(method: Method) -> Method:
    """A method that all ranks call: an error on one of them is a ``RankError`` on the others."""
    return _called_by_all(method, meets=True)


def configuring(method: Method) -> Method:
    """The same for a method that does not communicate, so that the ranks need not meet."""
    return _called_by_all(method, meets=False)


def together_or_alone(method: Method) -> Method:
    """The same for a method that a function of ``on_rank`` may call, for this rank alone."""
    of_all = together(method)

    @functools.wraps(method)
    def call(handler: BaseHandler, *args: Any, **kwargs: Any) -> Any:
        if not is_alone() or handler.world.size == 1:
            return of_all(handler, *args, **kwargs)
        if handler.parallel.is_sharded:
            raise ConfigurationError(
                f"{method.__name__} needs all ranks for a sharded model (FSDP), but only some run "
                f"this function (on_rank): call it outside of the function, on all ranks."
            )
        world, handler.world = handler.world, World()
        try:
            return method(handler, *args, **kwargs)
        finally:
            handler.world = world

    return cast(Method, call)


def _called_by_all(method: Method, *, meets: bool) -> Method:
    @functools.wraps(method)
    def call(handler: BaseHandler, *args: Any, **kwargs: Any) -> Any:
        with handler.world.call(method.__name__, meets=meets):
            return method(handler, *args, **kwargs)

    return cast(Method, call)


def batches_of(world: World, verb: str, batches: Iterator[Any]) -> Iterator[Any]:
    """``batches``, where an error on one rank is a ``RankError`` on the others."""
    with world.call(verb, meets=False):
        yield from batches
