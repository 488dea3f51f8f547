"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fitkit.generative.score_matching import Score


def guide_score(
    score: Callable[..., Tensor],
    conditions: Sequence[Tensor],
    unconditional: Sequence[Tensor],
    scale: float,
) -> Score:
    """``s_u + scale (s_c - s_u)`` with the scores ``s_c`` under conditions and ``s_u`` without.

    Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598). ``score`` is a function of
    ``(t, x, *conditions)``, called with ``unconditional`` for ``s_u``.
    """
    if scale == 1.0:
        return lambda t, x: score(t, x, *conditions)

    def guided(t: Tensor, x: Tensor) -> Tensor:
        without = score(t, x, *unconditional)
        return without + scale * (score(t, x, *conditions) - without)

    return guided
