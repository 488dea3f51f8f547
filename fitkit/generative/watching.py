"""A bar for draws in progress, and an end to those that are no numbers any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from tqdm import auto

from fitkit.core.errors import SamplingError
from fitkit.generative.reverse import Watch


class _Bar(auto.tqdm):  # type: ignore[misc]  # tqdm has no types
    monitor_interval = 0  # no watching thread


@contextmanager
def watched(title: str, total: int | None, *, show: bool) -> Iterator[Watch]:
    """A function to call with time and values after each step.

    It raises ``SamplingError`` where values are not finite, and moves a progress bar.

    Args:
        title: what stands before the bar.
        total: steps to come; ``None``: nobody knows.
        show: whether to show the bar, where standard error is a terminal or a notebook.
    """
    disable = None if show else True  # None: tqdm looks whether there is a terminal
    with _Bar(desc=title, total=total, unit=" steps", file=sys.stderr, disable=disable) as bar:
        number = 0

        def watch(t: float, x: Tensor) -> None:
            nonlocal number
            number += 1
            if not bool(x.isfinite().all()):
                raise SamplingError(
                    f"values are not finite after step {number}"
                    f"{'' if total is None else f' of {total}'}, at t = {t:.4g}: look at the "
                    f"model's score there, or take more steps."
                )
            bar.update()

        yield watch
