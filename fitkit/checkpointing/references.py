"""Classes by name: written as ``"module:qualname"``, and found again without importing anything."""

from __future__ import annotations

import sys
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
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if not isinstance(found, type):
        raise CheckpointError(
            f"the checkpoint names the class {str(name)!r}, which this program does not have (it is "
            f"not at the top of its module, or was renamed): {remedy}."
        )
    if not issubclass(found, kind):
        raise CheckpointError(
            f"the checkpoint names {str(name)!r} where a {kind.__name__} is needed, which it is not; "
            f"it was not used. If you trust the rest of the file, {remedy}."
        )
    return found
