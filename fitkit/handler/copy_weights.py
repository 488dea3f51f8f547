"""copy_into: copies a state dict into a module, or leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fitkit.checkpointing.read_weights import REMEDY, has_own_loading
from fitkit.core.errors import as_checkpoint_error
from fitkit.distributed.dtensor import distribute_all_like
from fitkit.runtime.lazy_modules import with_values
from fitkit.runtime.module_state import make_weights_undo


def copy_into(
    module: nn.Module,
    weights: Mapping[str, Any],
    *,
    strict: bool = True,
    remedy: str = REMEDY,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Copy ``weights`` into ``module``; full tensors are sharded as the module's are.

    Args:
        module: the module.
        weights: a state dict of it.
        strict: whether names must match exactly.
        remedy: what the error says to do.
        check: called as soon as parameters have their final shapes.

    Raises:
        CheckpointError: they do not fit, or ``check`` raised it; the module is as it was.
    """
    own = with_values(module.state_dict())
    undo = make_weights_undo(module) if has_own_loading(module) else None
    if undo is None:
        check()
    try:
        problem = f"the checkpoint's weights do not fit {type(module).__name__}"
        with as_checkpoint_error(problem, remedy):
            module.load_state_dict(distribute_all_like(weights, own), strict=strict)
        if undo is not None:
            check()
    except BaseException:
        if undo is not None:
            undo()
        raise
