"""Whether this rank runs something that the others do not, so that it must not wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fitkit.core.errors import ConfigurationError

_is_alone: ContextVar[bool] = ContextVar("fitkit_is_alone", default=False)


def is_alone() -> bool:
    """Whether the code is inside ``alone``, as a function of ``on_rank`` is."""
    return _is_alone.get()


@contextmanager
def alone() -> Iterator[None]:
    """Inside ``with`` other ranks need not do the same, so communication with them is refused."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def require_company(verb: str) -> None:
    """Raise ``ConfigurationError`` if ``verb``, which needs all ranks, is called by some of them.

    They would wait for the other ranks, which do something else.
    """
    if is_alone():
        raise ConfigurationError(
            f"{verb} needs all ranks, but only some run this function (on_rank): call it outside "
            f"of the function, on all ranks. evaluate and predict work inside for a model that is "
            f"not sharded, and handler.save between epochs."
        )
