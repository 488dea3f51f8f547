"""Class names in checkpoints, ``"module:qualname"``, resolved without importing anything."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from fitkit.core.errors import CheckpointError

Kind = TypeVar("Kind")


def class_name(cls: type) -> str:
    """The name of a class in a checkpoint.

    >>> import torch
    >>> class_name(torch.nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def resolve_class(
    name: Any, kind: type[Kind], remedy: str, *, search_subclasses: bool = True
) -> type[Kind]:
    """The class called ``name``, if the program has it already and it is a subclass of ``kind``.

    Nothing is imported and no attribute access runs code: only the dictionaries of modules and
    classes are read, because a file must not be able to run code by naming a class.

    Args:
        name: ``"module:qualname"``.
        kind: the base class, or a protocol.
        remedy: what the user can do instead, for the error.
        search_subclasses: whether to look among all subclasses of ``kind`` for a class that is in
            no module, because it was made in a function or a notebook cell.

    Raises:
        CheckpointError: there is no such class, or it is not a ``kind``.
    """
    module_name, _, qualname = str(name).partition(":")
    subclass = _find_subclass(kind, module_name, qualname) if search_subclasses else None
    found: Any = sys.modules.get(module_name)
    if found is None and subclass is None:
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, but module {module_name!r} is not "
            f"imported; fitkit imports nothing because a file names it. Import it first, or "
            f"{remedy}."
        )
    for part in qualname.rpartition("<locals>.")[2].split("."):
        found = _namespace(found).get(part)
    if "<locals>" in qualname and _qualname_of(found) != qualname:
        found = None
    if not issubclass(type(found), type):
        found = subclass
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


def _is_kind(cls: Any, kind: type) -> bool:
    """Whether a class is a ``kind`` by inheritance or, if that is a protocol, by its methods."""
    bases = vars(type)["__mro__"].__get__(cls)
    if kind in bases or not vars(kind).get("_is_protocol"):
        return kind in bases
    required = {name for name, value in vars(kind).items() if inspect.isfunction(value)}
    defined = {name for base in bases for name in _namespace(base)}
    return {name for name in required if not name.startswith("_")} <= defined


def _find_subclass(kind: type[Kind], module_name: str, qualname: str) -> type[Kind] | None:
    """The subclass of ``kind`` with that name, the last one if there are several."""
    found: type[Kind] | None = None
    pending, seen = [kind], set[int]()
    while pending:
        for cls in type.__subclasses__(pending.pop()):
            if id(cls) in seen:
                continue
            seen.add(id(cls))
            pending.append(cls)
            if (_namespace(cls).get("__module__"), _qualname_of(cls)) == (module_name, qualname):
                found = cls
    return found


def _qualname_of(cls: Any) -> Any:
    is_class = issubclass(type(cls), type)
    return vars(type)["__qualname__"].__get__(cls) if is_class else None


def _namespace(owner: Any) -> Mapping[str, Any]:
    """What a module or class defines, read without its ``__getattr__``, properties or metaclass."""
    for base in (ModuleType, type):
        if issubclass(type(owner), base):
            namespace: Mapping[str, Any] = vars(base)["__dict__"].__get__(owner)
            return namespace
    return MappingProxyType({})
