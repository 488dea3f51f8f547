"""The progress bar of a draw, and the check that its values are finite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from tqdm import auto

from fitkit.core.errors import SamplingError
from fitkit.generative.sampling_methods import OnStep


class _Bar(auto.tqdm):  # type: ignore[misc]  # tqdm has no types
    monitor_interval = 0  # no monitor thread


@contextmanager
def track_progress(title: str, total: int | None, *, show: bool) -> Iterator[OnStep]:
    """A function to call with time and values after each step; it moves a progress bar.

    It raises ``SamplingError`` if values are not finite. The bar has ``total`` steps, and is shown
    only if standard error is a terminal or a notebook.
    """
    disable = None if show else True  # None: tqdm looks whether there is a terminal
    with _Bar(desc=title, total=total, unit=" steps", file=sys.stderr, disable=disable) as bar:
        number = 0

        def on_step(t: float, x: Tensor) -> None:
            nonlocal number
            number += 1
            if not bool(x.isfinite().all()):
                raise SamplingError(
                    f"values are not finite after step {number}"
                    f"{'' if total is None else f' of {total}'}, at t = {t:.4g}: check the "
                    f"model's score there, or take more steps."
                )
            bar.update()

        yield on_step
