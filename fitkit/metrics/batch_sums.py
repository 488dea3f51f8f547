"""BatchSums: sums what a batch adds to loss and metrics over the ranks, in one all-reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.state_placement import is_on_host
from fitkit.metrics.ranks import Ranks, lengths_over_ranks


class BatchSums:
    """Sums vectors by name over the ranks, batch by batch, on their device and without a wait.

    The ranks agree on the names in the first batch. Each batch says which of them a rank has, and
    whether it has another, for which they agree anew: on the host in the same all-reduce, else in
    a second one of integers on the host, and only if ``names_vary``.

    Args:
        ranks: the ranks, all of which call this for the same batches.
        device: the device of the vectors; those of a metric may be on the host.
        names_vary: whether a rank may have other names in another batch, as of a custom step.
    """

    def __init__(self, ranks: Ranks, device: torch.device, *, names_vary: bool) -> None:
        self._ranks = ranks
        self._device = device
        self._names_vary = names_vary
        self._lengths: dict[str, int] | None = None

    def over_ranks(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums by name, of the names that any rank has in this batch; the same bits on each."""
        if self._lengths is None:
            self._lengths = lengths_over_ranks(vectors, self._ranks)
        (has_new, *present), sums = self._sum(vectors, self._lengths)
        if has_new:
            self._lengths = self._lengths | lengths_over_ranks(vectors, self._ranks)
            (_, *present), sums = self._sum(vectors, self._lengths)
        parts = sums.split_with_sizes(list(self._lengths.values()))
        named = zip(self._lengths, parts, present, strict=True)
        return {name: part for name, part, is_present in named if is_present}

    def _sum(
        self, vectors: dict[str, Tensor], lengths: dict[str, int]
    ) -> tuple[list[float], Tensor]:
        """On how many ranks there is another name, and each name; the sums, one after the other."""
        marks = [float(not vectors.keys() <= lengths.keys())]
        marks += [float(name in vectors) for name in lengths]
        on_host = torch.tensor(marks, dtype=torch.float64)
        terms = [self._term(vectors.get(name), length) for name, length in lengths.items()]
        if self._device.type == "cpu":
            total = self._ranks.sum(torch.cat([on_host, *terms]))
            return total[: len(marks)].tolist(), total[len(marks) :]
        if self._names_vary:
            marks = self._ranks.sum(on_host).tolist()
        else:
            marks = [0.0, *(1.0 for _ in lengths)]
        return marks, self._ranks.sum(torch.cat(terms)) if terms else on_host[:0]

    def _term(self, vector: Tensor | None, length: int) -> Tensor:
        dtype = accumulation_dtype(self._device)
        if vector is None:
            return torch.zeros(length, dtype=dtype, device=self._device)
        if is_on_host(vector) and self._device.type != "cpu":
            return vector.to(dtype).pin_memory().to(self._device, non_blocking=True)
        return vector.to(dtype)
