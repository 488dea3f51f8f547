"""The arguments of an object's constructor as plain types, read from its attributes."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import os
import re
from collections.abc import Collection, Iterator
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any

_LARGEST = 100  # items of a container; a larger one is data
_CREDENTIALS = re.compile(r"token|passw|secret|credential|api_?key|ur[il]$", re.IGNORECASE)


def constructor_arguments(owner: object, without: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of the constructor of ``owner`` as far as they can be read.

    An argument is the attribute of its name, or of that name with an underscore. It is left out if
    it is not of a plain type, or if its name says that it may hold a credential. A dataclass is
    the dict of its fields whose value is not the default; a path, a duration or an enum member is
    its text. Absolute paths are left out, so that equal runs in two folders have equal arguments.

    >>> import types
    >>> class Stop:
    ...     def __init__(self, monitor, patience, action):
    ...         self.monitor, self._patience, self.action = monitor, patience, action
    >>> constructor_arguments(Stop("loss", 3, print))
    {'monitor': 'loss', 'patience': 3}
    """
    attributes = vars(owner)
    arguments = {}
    cls: Any = type(owner)
    for name in _parameters(cls):
        attribute = name if name in attributes else f"_{name}"
        if attribute in attributes and not {name, attribute} & set(without):
            try:
                arguments[name] = _plain(attributes[attribute])
            except (TypeError, RecursionError):
                continue
    return arguments


@cache
def _parameters(cls: type) -> tuple[str, ...]:
    """The parameters of ``__init__``, then those of its parents, to which it may pass others on."""

    def names() -> Iterator[str]:
        for base in cls.__mro__:
            if inspect.isfunction(constructor := vars(base).get("__init__")):
                yield from list(inspect.signature(constructor).parameters)[1:]

    return tuple(dict.fromkeys(name for name in names() if not _CREDENTIALS.search(name)))


def _plain(value: Any) -> Any:
    """``value`` as a plain type; raises ``TypeError`` if there is none for it."""
    if isinstance(value, (PurePath, datetime.timedelta)):
        value = str(value)
    is_absolute = type(value) is str and os.path.isabs(value)
    if value is None or (type(value) in (bool, int, float, str) and not is_absolute):
        return value
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        value = {field.name: item for field, item in items if item != field.default}
    if type(value) in (list, tuple, dict) and len(value) <= _LARGEST:
        if type(value) is dict:
            return {_plain(key): _plain(item) for key, item in value.items()}
        return type(value)(map(_plain, value))
    raise TypeError
