"""Sums over ranks of vectors that are matched by name, whatever a rank has met of them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fitkit.core.errors import DataError


class Ranks(Protocol):
    """The ranks that share a pass over data; all of them call each method in the same order."""

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum of a float64 vector over the ranks, the same bits on each."""

    def gather_all(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""


def sum_by_name(vectors: dict[str, Tensor], ranks: Ranks | None) -> dict[str, Tensor]:
    """The sums of float64 vectors over the ranks, by name, on every rank.

    A rank that lacks a name, or has an empty vector for it, adds nothing to it.

    Raises:
        DataError: vectors of one name have different lengths.
    """
    if ranks is None:
        return vectors
    lengths = lengths_over_ranks(vectors, ranks)
    terms = [
        vectors[name] if len(vectors.get(name, ())) else torch.zeros(length, dtype=torch.float64)
        for name, length in lengths.items()
    ]
    sums = ranks.sum(torch.cat(terms)) if terms else torch.zeros(0, dtype=torch.float64)
    return dict(zip(lengths, sums.split_with_sizes(list(lengths.values())), strict=True))


def lengths_over_ranks(vectors: dict[str, Tensor], ranks: Ranks) -> dict[str, int]:
    """The length of the vector of each name that any rank has, in the same order on every rank.

    Raises:
        DataError: vectors of one name have different lengths.
    """
    lengths: dict[str, int] = {}
    for of_rank in ranks.gather_all({name: len(vector) for name, vector in vectors.items()}):
        for name, length in of_rank.items():
            known = lengths.get(name) or length
            if length not in (0, known):
                raise DataError(
                    f"update of metric {name!r} must return as many statistics on each rank, "
                    f"received {known} and {length}."
                )
            lengths[name] = known
    return lengths
