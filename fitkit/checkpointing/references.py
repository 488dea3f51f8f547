"""Classes by name: written as ``"module:qualname"``, and found again without importing anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from fitkit.core.errors import CheckpointError

Kind = TypeVar("Kind")


def name_of(cls: type) -> str:
    """The name under which a class stands in a checkpoint.

    >>> import torch
    >>> name_of(torch.nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def resolve(name: Any, kind: type[Kind], remedy: str) -> type[Kind]:
    """The class called ``name``, if the program has it already and it is a ``kind``.

    Nothing is imported and no attribute access runs code: only the dictionaries of modules and
    classes are looked into.

    Args:
        name: ``"module:qualname"``.
        kind: the class it must be a subclass of.
        remedy: what the user can do instead, for the error.

    Raises:
        CheckpointError: there is no such class here, or it is of another kind.
    """
    module_name, _, qualname = str(name).partition(":")
    found: Any = sys.modules.get(module_name)
    if found is None:
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, but module {module_name!r} is not "
            f"imported; nothing that a file names is imported for it. Import it first, or {remedy}."
        )
    for part in qualname.split("."):
        found = _namespace(found).get(part)
    if not issubclass(type(found), type):
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, which this program does not have (it "
            f"is not at the top of its module, or was renamed): {remedy}."
        )
    if kind not in vars(type)["__mro__"].__get__(found):
        raise CheckpointError(
            f"the checkpoint names {str(name)!r} where a {kind.__name__} is needed, which it is "
            f"not; it was not used. If you trust the rest of the file, {remedy}."
        )
    checked: type[Kind] = found
    return checked


def _namespace(holder: Any) -> Mapping[str, Any]:
    """What a module or class defines; read past any ``__getattr__``, property or metaclass."""
    for base in (ModuleType, type):
        if issubclass(type(holder), base):
            namespace: Mapping[str, Any] = vars(base)["__dict__"].__get__(holder)
            return namespace
    return MappingProxyType({})
