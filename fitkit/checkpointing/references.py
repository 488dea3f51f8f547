"""Classes by name: written as ``"module:qualname"``, and found again without importing anything."""

from __future__ import annotations

import inspect
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


def resolve(name: Any, kind: type[Kind], remedy: str, *, living: bool = True) -> type[Kind]:
    """The class called ``name``, if the program has it already and it is a ``kind``.

    Nothing is imported and no attribute access runs code: only the dictionaries of modules and
    classes are looked into. A class that is in no module (it was made in a function or a notebook
    cell) is found among the living subclasses of ``kind``.

    Args:
        name: ``"module:qualname"``.
        kind: the class it must be a subclass of.
        remedy: what the user can do instead, for the error.
        living: whether to look for classes that are in no module.

    Raises:
        CheckpointError: there is no such class here, or it is of another kind.
    """
    module_name, _, qualname = str(name).partition(":")
    made = _living(kind, module_name, qualname) if living else None
    found: Any = sys.modules.get(module_name)
    if found is None and made is None:
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, but module {module_name!r} is not "
            f"imported; nothing that a file names is imported for it. Import it first, or {remedy}."
        )
    for part in qualname.rpartition("<locals>.")[2].split("."):
        found = _namespace(found).get(part)
    if "<locals>" in qualname and _qualname_of(found) != qualname:
        found = None
    if not issubclass(type(found), type):
        found = made
    if found is None:
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, which this program does not have (it "
            f"is not defined yet, or was renamed): {remedy}."
        )
    if not _is_kind(found, kind):
        raise CheckpointError(
            f"the checkpoint names {str(name)!r} where a {kind.__name__} is needed, which it is "
            f"not; it was not used. If you trust the rest of the file, {remedy}."
        )
    checked: type[Kind] = found
    return checked


def _is_kind(found: Any, kind: type) -> bool:
    """Whether a class is a ``kind`` by inheritance or, where that is a protocol, by its methods."""
    bases = vars(type)["__mro__"].__get__(found)
    if kind in bases or not vars(kind).get("_is_protocol"):
        return kind in bases
    needed = {name for name, value in vars(kind).items() if inspect.isfunction(value)}
    defined = {name for base in bases for name in _namespace(base)}
    return {name for name in needed if not name.startswith("_")} <= defined


def _living(kind: type[Kind], module_name: str, qualname: str) -> type[Kind] | None:
    """A subclass of that module and name which the program has made, the later one of several."""
    found: type[Kind] | None = None
    waiting = [kind]
    seen: set[int] = set()
    while waiting:
        cls = waiting.pop()
        for child in type.__subclasses__(cls):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
                if (
                    _qualname_of(child) == qualname
                    and _namespace(child).get("__module__") == module_name
                ):
                    found = child
    return found


def _qualname_of(cls: Any) -> Any:
    is_class = issubclass(type(cls), type)
    return vars(type)["__qualname__"].__get__(cls) if is_class else None


def _namespace(holder: Any) -> Mapping[str, Any]:
    """What a module or class defines; read past any ``__getattr__``, property or metaclass."""
    for base in (ModuleType, type):
        if issubclass(type(holder), base):
            namespace: Mapping[str, Any] = vars(base)["__dict__"].__get__(holder)
            return namespace
    return MappingProxyType({})
