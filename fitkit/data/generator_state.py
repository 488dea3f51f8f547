"""UserGenerators: saves and restores the torch generators that a user gave to a loader."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


class UserGenerators:
    """The generators of a loader and its samplers, with their states at the start of the pass.

    A pass that was interrupted is replayed from the states at its start; a new pass continues from
    the latest states.
    """

    def __init__(self, loader: Any) -> None:
        owners = (loader, *samplers_of(loader))
        generators = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
        self._generators = [g for g in generators.values() if isinstance(g, torch.Generator)]
        self._open_epoch: int | None = None
        self._at_start: list[Tensor] = []
        self._restored: dict[str, Any] | None = None

    def open(self, epoch: int) -> None:
        """Begin or replay pass ``epoch``."""
        if self._restored is not None:
            is_same_pass = self._restored["epoch"] == epoch
            self._set_states(self._restored["start" if is_same_pass else "now"])
            self._restored = None
        self._at_start = self.states()
        self._open_epoch = epoch

    def close(self) -> None:
        """End the open pass."""
        self._open_epoch = None

    def state_dict(self) -> dict[str, Any]:
        """The open pass, and the states at its start and now; empty without generators."""
        if self._restored is not None:
            return self._restored
        if not self._generators:
            return {}
        return {"epoch": self._open_epoch, "start": self._at_start, "now": self.states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep states for the next ``open``; warn and ignore them if their number differs."""
        self._restored = state_dict or None
        num_saved = len(state_dict.get("now", ()))
        if state_dict and num_saved != len(self._generators):
            self._restored = None
            warnings.warn(
                f"the checkpoint has the states of {num_saved} generators of the loader, which now "
                f"has {len(self._generators)}: the order of samples will differ from the "
                f"interrupted run. Build the loader as before to keep it.",
                stacklevel=2,
            )

    def restore_now(self, state_dict: dict[str, Any]) -> None:
        """Set the generators to their states when ``state_dict`` was taken."""
        if len(state_dict.get("now", ())) == len(self._generators):
            self._set_states(state_dict.get("now", ()))

    def _set_states(self, states: Any) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu())

    def states(self) -> list[Tensor]:
        """The states of the generators now."""
        return [generator.get_state() for generator in self._generators]


def announce_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` of the loader, its dataset and its samplers, where they have it."""
    for part in (loader, getattr(loader, "dataset", None), *samplers_of(loader)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def samplers_of(loader: Any) -> list[Any]:
    """The samplers and batch samplers of a loader, with those that they wrap."""
    samplers: list[Any] = []
    for name in ("batch_sampler", "sampler"):
        sampler = getattr(loader, name, None)
        while sampler is not None and all(sampler is not known for known in samplers):
            samplers.append(sampler)
            sampler = getattr(sampler, "sampler", None)
    return samplers
