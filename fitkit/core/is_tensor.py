"""Tell tensors from other values without importing torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether ``value`` is a tensor, for files that the command line imports without torch.

    >>> is_tensor(1)
    False
    """
    torch = sys.modules.get("torch")  # before it is imported nothing is a tensor
    return torch is not None and isinstance(value, torch.Tensor)
