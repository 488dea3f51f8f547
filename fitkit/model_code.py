"""The model's own source, for its checkpoints."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from fitkit.checkpointing.source import is_own, source_of

if TYPE_CHECKING:
    from fitkit.parts import Parts


def read(parts: Parts) -> str | None:
    """The source of the model's class and of this program's classes in it; warns of gaps."""
    passed = () if parts.model_spec is None else parts.model_spec.kwargs.values()
    inside = dict.fromkeys(type(module) for module in parts.module.modules())
    own = [cls for cls in inside if is_own(cls.__module__)]
    given = [cls for cls in passed if isinstance(cls, type) and is_own(cls.__module__)]
    code, missing = source_of(dict.fromkeys([type(parts.module), *own, *given]))
    if missing:
        what = "lacks something" if code else "will not be in checkpoints"
        warnings.warn(
            f"the source of {type(parts.module).__name__} {what}: {'; '.join(missing)}. What was "
            f"typed into an interpreter or made at run time has no source: put it into a file.",
            stacklevel=3,
        )
    return code
