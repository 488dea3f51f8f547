"""Compare the gradients of all ranks before an optimizer step, and the weights after it."""

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
    differing = _differing(world, {name: p.grad for name, p in named.items() if not is_dtensor(p)})
    if differing:
        raise ConfigurationError(
            f"the gradients of {names_of(list(differing))} are not those of all ranks together: "
            f"that of {_first(differing)}. They come from a backward pass that fitkit does not "
            f"see: return the loss from the training step, or call loss.backward() in it, and do "
            f"not assign .grad."
        )


@torch.no_grad()
def require_equal_weights(world: World, named: Mapping[str, Tensor]) -> None:
    """As ``require_equal_gradients``, for the values of parameters.

    Raises:
        ConfigurationError: some value differs.
    """
    differing = _differing(world, {name: p for name, p in named.items() if not is_dtensor(p)})
    if differing:
        raise ConfigurationError(
            f"the ranks train different models: {_first(differing)}. A training step or a callback "
            f"changes weights or gradients by what one rank has, its samples or random numbers: "
            f"return the loss from the training step, or call loss.backward() in it, and change "
            f"the rest equally on all ranks."
        )


def _differing(
    world: World, tensors: Mapping[str, Tensor | None]
) -> dict[str, tuple[float | None, ...]]:
    """The norms on all ranks of the tensors whose norms differ."""
    norms = world.gather_all([_norm(tensor) for tensor in tensors.values()])
    of_ranks = zip(tensors, zip(*norms, strict=True), strict=True)
    return {name: of for name, of in of_ranks if not all(_is_equal(one, of[0]) for one in of)}


def _first(differing: Mapping[str, Sequence[float | None]]) -> str:
    name, of_ranks = next(iter(differing.items()))
    found = ", ".join(f"{_described(norm)} on rank {rank}" for rank, norm in enumerate(of_ranks))
    return f"{name!r} has {found}"


def names_of(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many there are."""
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _norm(tensor: Tensor | None) -> float | None:
    if tensor is None:
        return None
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
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
