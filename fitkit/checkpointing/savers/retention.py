"""Retention: which of the files that a saver wrote are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fitkit.core.argument_checks import require_count
from fitkit.core.errors import ConfigurationError
from fitkit.core.monitor import Monitor


@dataclass(frozen=True)
class Retention:
    """Which files are kept: those that any of the rules keeps, and always the newest.

    Files are deleted only after a newer one is durable.

    Args:
        keep_last: keep this many, the newest ones.
        keep_best: keep this many, the best ones by ``monitor``. Values that are not finite never
            count as best; of equal ones the older is kept.
        monitor: the logged value for ``keep_best``; default: that of the ``ModelCheckpoint``.
        mode: ``"min"``, ``"max"``, or ``"auto"`` (by the name).
        keep_every_n_epochs: keep the file of every n-th epoch's end for good.

    Raises:
        ConfigurationError: an argument cannot be used, or there is no rule.

    >>> Retention(keep_last=1, keep_best=1, monitor="loss").obsolete(
    ...     [["1.pth", 0.5], ["2.pth", 0.4], ["3.pth", 0.6], ["4.pth", 0.7]])
    ['1.pth', '3.pth']
    """

    keep_last: int | None = None
    keep_best: int | None = None
    monitor: str | None = None
    mode: str = "auto"
    keep_every_n_epochs: int | None = None

    def __post_init__(self) -> None:
        rules = ("keep_last", "keep_best", "keep_every_n_epochs")
        for name in rules:
            require_count(name, getattr(self, name), optional=True)
        if all(getattr(self, name) is None for name in rules):
            raise ConfigurationError(
                "a Retention needs a rule: keep_last=, keep_best= or keep_every_n_epochs=; without "
                "one, leave retention= out, and every file is kept."
            )
        if self.monitor is not None:
            Monitor(self.monitor, self.mode)

    @property
    def comparator(self) -> Monitor | None:
        """The comparison that ranks files; ``None`` without ``keep_best``."""
        if self.keep_best is None or self.monitor is None:
            return None
        return Monitor(self.monitor, self.mode)

    def is_lasting(self, epochs_done: int | None) -> bool:
        """Whether the file of the end of this epoch (from 1) is kept for good."""
        every = self.keep_every_n_epochs
        return every is not None and epochs_done is not None and epochs_done % every == 0

    def obsolete(self, kept: Sequence[Sequence[Any]]) -> list[str]:
        """The files that no rule keeps.

        Args:
            kept: name and monitored value (or ``None``) of each file, the oldest first.
        """
        wanted = {name for name, _ in kept[-(self.keep_last or 1) :]}
        comparator = self.comparator
        if comparator is not None:
            scored = [entry for entry in kept if entry[1] is not None and math.isfinite(entry[1])]
            best = sorted(scored, key=lambda entry: comparator.sort_key(entry[1]))
            wanted |= {name for name, _ in best[: self.keep_best]}
        return [name for name, _ in kept if name not in wanted]


def resolve_retention(
    retention: Retention | None,
    max_to_keep: int | None,
    monitor: str | None = None,
    mode: str = "auto",
) -> Retention | None:
    """The rules that a saver's arguments mean.

    Args:
        retention: rules; ``keep_best`` without a name of its own uses ``monitor``.
        max_to_keep: short form: the best by ``monitor``, or without one the last.
        monitor: the saver's monitored value.
        mode: ``"min"``, ``"max"`` or ``"auto"``.

    Raises:
        ConfigurationError: both were given, or ``keep_best`` has no value to compare.
    """
    require_count("max_to_keep", max_to_keep, optional=True)
    if retention is None:
        if max_to_keep is None:
            return None
        if monitor is None:
            return Retention(keep_last=max_to_keep)
        return Retention(keep_best=max_to_keep, monitor=monitor, mode=mode)
    if not isinstance(retention, Retention):
        raise ConfigurationError(f"retention must be a fitkit.Retention, received {retention!r}.")
    if max_to_keep is not None:
        raise ConfigurationError(
            "retention= says which files are kept, so max_to_keep= and overwriting cannot be given "
            "as well: use Retention(keep_last=...)."
        )
    if retention.keep_best is None or retention.monitor is not None:
        return retention
    if monitor is None:
        raise ConfigurationError("keep_best needs to know by which value: pass monitor=.")
    return replace(retention, monitor=monitor, mode=mode)
