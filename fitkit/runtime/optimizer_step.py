"""take_step: ``optimizer.step()`` without the time that torch's profiler label takes."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer


def take_step(optimizer: Any) -> None:
    """Call ``step`` of an optimizer, or of what steps in its place.

    torch wraps ``step`` in a label for its profiler and in hooks. The label takes as long as a
    small model's backward pass of one layer, so it is left out where nobody would see it: without
    profiler and hooks, and where ``step`` is not replaced, as torch's schedulers do.
    """
    wrapped: Any = getattr(type(optimizer), "step", None)
    if getattr(wrapped, "hooked", False) and not _needs_wrapper(optimizer):
        wrapped.__wrapped__(optimizer)
    else:
        optimizer.step()


def _needs_wrapper(optimizer: Any) -> bool:
    return bool(
        "step" in vars(optimizer)
        or optimizer._optimizer_step_pre_hooks  # noqa: SLF001  as torch's wrapper does
        or optimizer._optimizer_step_post_hooks  # noqa: SLF001
        or torch_optimizer._global_optimizer_pre_hooks  # noqa: SLF001
        or torch_optimizer._global_optimizer_post_hooks  # noqa: SLF001
        or is_profiled()
    )


def is_profiled() -> bool:
    """Whether torch's profiler runs, for which torch puts labels on what takes time."""
    return bool(torch._C._autograd._profiler_enabled())  # noqa: SLF001  no public form
