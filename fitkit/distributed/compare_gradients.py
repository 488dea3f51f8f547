"""Compare the gradients of all ranks, which must be equal before the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import ConfigurationError
from fitkit.distributed.dtensor import is_dtensor
from fitkit.distributed.world import World

_ROUNDING = 1e-5  # relative; gradients of different samples differ by far more
_MOST_NAMES = 3


def require_equal_gradients(world: World, named: Mapping[str, Tensor]) -> None:
    """Raise ``ConfigurationError`` on all ranks if a gradient differs between them.

    Compares the norm of each gradient. All ranks have to call it. Sharded parameters are left out.

    Raises:
        ConfigurationError: some gradient differs, or is missing on some ranks.
    """
    whole = {name: p for name, p in named.items() if not is_dtensor(p)}
    norms = world.gather_all([_norm(parameter.grad) for parameter in whole.values()])
    differing = {
        name: of_ranks
        for name, *of_ranks in zip(whole, *norms, strict=True)
        if not all(_is_equal(norm, of_ranks[0]) for norm in of_ranks)
    }
    if not differing:
        return
    name, of_ranks = next(iter(differing.items()))
    found = ", ".join(f"{_described(norm)} on rank {rank}" for rank, norm in enumerate(of_ranks))
    raise ConfigurationError(
        f"the gradients of {names_of(list(differing))} are not those of all ranks together: that "
        f"of {name!r} has {found}. They come from a backward pass that fitkit does not see: return "
        f"the loss from the training step, or call loss.backward() in it, and do not assign .grad."
    )


def names_of(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many there are."""
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _norm(gradient: Tensor | None) -> float | None:
    if gradient is None:
        return None
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    dtype = accumulation_dtype(values.device)
    if values.is_complex():
        values = torch.view_as_real(values)
    return float(torch.linalg.vector_norm(values.detach(), dtype=dtype))


def _is_equal(norm: float | None, other: float | None) -> bool:
    if norm is None or other is None:
        return norm is other
    both_nan = math.isnan(norm) and math.isnan(other)
    return both_nan or math.isclose(norm, other, rel_tol=_ROUNDING)


def _described(norm: float | None) -> str:
    return "no gradient" if norm is None else f"the norm {norm:.6g}"
