"""UserGenerators: the torch generators that a user gave to a loader or its samplers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


class UserGenerators:
    """Where a loader's generators stood when the pass in progress began, and where they stand.

    A pass that a checkpoint cut is replayed from its beginning; a pass that follows goes on from
    where they stood.

    Args:
        loader: a ``DataLoader``, or anything else, which then has none.
    """

    def __init__(self, loader: Any) -> None:
        self._generators = _generators_of(loader)
        self._open_epoch: int | None = None
        self._at_start: list[Tensor] = []
        self._loaded: dict[str, Any] | None = None

    def open(self, epoch: int) -> None:
        """Pass ``epoch`` begins, or begins again."""
        if self._loaded is not None:
            self._put(self._loaded["start" if self._loaded["epoch"] == epoch else "now"])
            self._loaded = None
        self._at_start = self._states()
        self._open_epoch = epoch

    def close(self) -> None:
        """The open pass came to its end."""
        self._open_epoch = None

    def state_dict(self) -> dict[str, Any]:
        """The open pass, and the states at its start and now; empty if there are no generators."""
        if self._loaded is not None:
            return self._loaded
        if not self._generators:
            return {}
        return {"epoch": self._open_epoch, "start": self._at_start, "now": self._states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep states for the next ``open``; where their number differs, warn and keep none."""
        self._loaded = state_dict or None
        found = len(state_dict.get("now", ()))
        if state_dict and found != len(self._generators):
            self._loaded = None
            warnings.warn(
                f"the checkpoint holds the states of {found} generators of the loader, which now "
                f"has {len(self._generators)}: the order of samples will not be that of the "
                f"interrupted run. Build the loader as it was to have it.",
                stacklevel=2,
            )

    def put_now(self, state_dict: dict[str, Any]) -> None:
        """Put the generators where they stood when ``state_dict`` was taken."""
        if len(state_dict.get("now", ())) == len(self._generators):
            self._put(state_dict.get("now", ()))

    def _put(self, states: Any) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu())

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]


def samplers_of(loader: Any) -> list[Any]:
    """The sampler and batch sampler of a loader, and those inside them, outermost first."""
    found: list[Any] = []
    for owner in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        sampler = owner
        while sampler is not None and all(sampler is not known for known in found):
            found.append(sampler)
            sampler = getattr(sampler, "sampler", None)
    return found


def announce_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` of the loader, its data set and its samplers, where they have one."""
    for part in (loader, getattr(loader, "dataset", None), *samplers_of(loader)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def _generators_of(loader: Any) -> list[torch.Generator]:
    found: list[torch.Generator] = []
    for owner in (loader, *samplers_of(loader)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found
