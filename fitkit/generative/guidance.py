"""Guidance by conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fitkit.generative.score_matching import Score


def guided(
    score: Callable[..., Tensor],
    conditions: Sequence[Tensor],
    unconditional: Sequence[Tensor],
    scale: float,
) -> Score:
    """The score under conditions, moved away from the one without them.

    Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): ``s_u + scale (s_c - s_u)``,
    so that 1 is the plain conditional score, 0 the unconditional one.

    Args:
        score: ``(t, x, *conditions) -> score``.
        conditions: what to sample under.
        unconditional: what the model is called with in their place where it is to know nothing.
        scale: 1 for the plain conditional score; above 1 stresses the conditions.
    """
    if scale == 1.0:
        return lambda t, x: score(t, x, *conditions)

    def combined(t: Tensor, x: Tensor) -> Tensor:
        without = score(t, x, *unconditional)
        return without + scale * (score(t, x, *conditions) - without)

    return combined
