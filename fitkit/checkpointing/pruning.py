"""Pruning: what rules of retention would have removed, removed afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fitkit.checkpointing import checkpoint
from fitkit.checkpointing.catalogue import Entry, Run, runs_of
from fitkit.checkpointing.retention import Retention
from fitkit.core.errors import ConfigurationError, MonitorError, did_you_mean, listed

Place = tuple[int, ...]


@dataclass
class Pruning:
    """What is to become of the files of a folder.

    Attributes:
        obsolete: checkpoints that no rule wants, the earliest first.
        kept: checkpoints that stay.
        untouched: files that are never removed, with the reason.
    """

    obsolete: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    untouched: list[tuple[Entry, str]] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        """The memory of files that lose all their names."""
        names = [one for one in self.obsolete if not one.path.is_symlink()]
        going = Counter(one.file_id for one in names)
        last_ones = {
            one.file_id: one.size_bytes
            for one in names
            if going[one.file_id] >= one.path.stat().st_nlink
        }
        return sum(last_ones.values())

    def remove(self) -> list[str]:
        """Remove what is obsolete; what cannot be removed is told, a sentence each."""
        return [told for one in self.obsolete if (told := checkpoint.remove(one.path)) is not None]


def plan_pruning(entries: Iterable[Entry], retention: Retention) -> Pruning:
    """Decide by the rules, for each run by itself, by places in it and not by times of files.

    Checkpoints of one place hold the same and stay or go together. The furthest of a run stays, and
    so does what one of its savers calls its best, on which a resumed run relies. Values count only
    at the end of the epoch that brought them.

    Args:
        entries: files whose checksums were all verified.
        retention: the rules.

    Raises:
        ConfigurationError: a rule cannot be used, or no checkpoint has the monitored value.
    """
    if retention.keep_best is not None and retention.monitor is None:
        raise ConfigurationError("keeping the best needs to know by which value: name a monitor.")
    entries = list(entries)
    runs, unclear = runs_of(entries)
    found = Pruning()
    for run in runs:
        _prune_run(run, retention, found)
    _require_scores(found, retention)
    whys = {"damaged": "damaged", "weights": "weights only", "other": "no checkpoint"}
    found.untouched += [(one, whys[one.kind]) for one in entries if one.kind in whys]
    found.untouched += [(one, "fits more than one run") for one in unclear]
    return found


def _prune_run(run: Run, retention: Retention, found: Pruning) -> None:
    oldest_first = run.entries[::-1]
    scores: dict[Place, float | None] = {}
    for one in oldest_first:
        scores[one.place] = scores.get(one.place) or _score(one, retention.monitor)
    # the rules speak of names: here each place has one
    places = {repr(place): place for place in scores}
    names = retention.obsolete([[name, scores[place]] for name, place in places.items()])
    going = {places[name] for name in names if not _is_lasting(places[name], run, retention)}
    for one in oldest_first:
        is_obsolete = one.place in going and one.file_id not in run.best
        (found.obsolete if is_obsolete else found.kept).append(one)


def _is_lasting(place: Place, run: Run, retention: Retention) -> bool:
    return any(retention.is_lasting(_epochs_done(one)) for one in run.entries if one.place == place)


def _epochs_done(entry: Entry) -> int | None:
    """At the end of an epoch, its number from 1."""
    progress = {} if entry.metadata is None else entry.metadata.state["progress"]["state"]
    is_end = progress.get("phase") == "begin" and progress["epoch"] > 0
    return progress["epoch"] if is_end else None


def _score(entry: Entry, monitor: str | None) -> float | None:
    if entry.metadata is None or monitor is None or _epochs_done(entry) is None:
        return None
    return entry.metadata.metrics.get(monitor)


def _require_scores(found: Pruning, retention: Retention) -> None:
    """A name that was mistyped would make every file obsolete but the newest."""
    placed = [one.metadata for one in (*found.kept, *found.obsolete) if one.metadata is not None]
    known = {name for one in placed for name, value in one.metrics.items() if math.isfinite(value)}
    if placed and retention.keep_best is not None and retention.monitor not in known:
        raise MonitorError(
            f"no checkpoint here has a value of {retention.monitor!r}; logged are {listed(known)}."
            + did_you_mean(str(retention.monitor), known)
        )
