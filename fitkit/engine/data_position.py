"""Restores a position in data, if it is one in the same parts."""

from __future__ import annotations

from typing import Any

from fitkit.core.errors import CheckpointError
from fitkit.core.types import BatchSource


def load_position(source: BatchSource, position: dict[str, Any], *, is_inside: bool) -> None:
    """Restore the position in data; that in other parts begins anew at the next epoch.

    Raises:
        CheckpointError: the position is inside a pass over data that was split otherwise.
    """
    possible, saved = getattr(source, "possible_parts", (1,)), position.get("parts", 1)
    if saved in possible:
        source.load_state_dict(position)
    elif is_inside:
        raise CheckpointError(
            f"the epoch was interrupted in the middle of data with a part per rank (split='rank'): "
            f"{saved} part{'s' if saved > 1 else ''} then, {max(possible)} now. Resume with as "
            f"many ranks and the same split=, or from the end of an epoch."
        )
