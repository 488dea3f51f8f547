"""Prune a folder: delete the checkpoints that a retention rule would not have kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fitkit.checkpointing.catalog.scan import CheckpointFile, RunFiles, group_runs
from fitkit.checkpointing.savers.retention import Retention
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.core.errors import ConfigurationError, MonitorError, did_you_mean, listed

_WHY_UNTOUCHED = {"damaged": "damaged", "weights": "weights only", "other": "no checkpoint"}


@dataclass
class PruningPlan:
    """What is to be done with the files of a folder."""

    obsolete: list[CheckpointFile] = field(default_factory=list)  # no rule keeps them
    kept: list[CheckpointFile] = field(default_factory=list)
    untouched: list[tuple[CheckpointFile, str]] = field(default_factory=list)  # and the reason

    @property
    def freed_bytes(self) -> int:
        """The size of the files that lose all their names."""
        files = [file for file in self.obsolete if not file.path.is_symlink()]
        lost_names = Counter(file.file_id for file in files)
        sizes = {
            file.file_id: file.size_bytes
            for file in files
            if lost_names[file.file_id] >= file.path.stat().st_nlink
        }
        return sum(sizes.values())

    def remove(self) -> list[str]:
        """Delete the obsolete files; return a message for each that could not be deleted."""
        problems = (single_or_sharded.remove(file.path) for file in self.obsolete)
        return [problem for problem in problems if problem is not None]


def plan_pruning(files: Iterable[CheckpointFile], retention: Retention) -> PruningPlan:
    """Apply the rules to each run by itself, by positions in it and not by times of files.

    Checkpoints at one position hold the same and stay or go together. The furthest of a run stays,
    and so does what a saver calls its best, on which a resumed run relies. Values count only at the
    end of the epoch that produced them.

    Raises:
        ConfigurationError: a rule cannot be used, or no checkpoint has the monitored value.
    """
    if retention.keep_best is not None and retention.monitor is None:
        raise ConfigurationError("keep_best needs a value to rank by: name a monitor.")
    files = list(files)
    runs, ambiguous = group_runs(files)
    plan = PruningPlan()
    for run in runs:
        _prune_run(run, retention, plan)
    _require_scores(plan, retention)
    reasons = [(file, _WHY_UNTOUCHED[file.kind]) for file in files if file.kind in _WHY_UNTOUCHED]
    plan.untouched = [*reasons, *((file, "fits more than one run") for file in ambiguous)]
    return plan


def _prune_run(run: RunFiles, retention: Retention, plan: PruningPlan) -> None:
    oldest_first = run.files[::-1]
    scores: dict[tuple[int, ...], float | None] = {}
    for file in oldest_first:
        scores[file.position] = scores.get(file.position) or _score(file, retention.monitor)
    # Retention works with names of files; here each position is one name.
    obsolete = set(
        retention.obsolete([[repr(position), score] for position, score in scores.items()])
    )
    lasting = {file.position for file in run.files if retention.is_lasting(_epochs_done(file))}
    for file in oldest_first:
        is_kept = file.position in lasting or file.file_id in run.best
        is_obsolete = repr(file.position) in obsolete and not is_kept
        (plan.obsolete if is_obsolete else plan.kept).append(file)


def _epochs_done(file: CheckpointFile) -> int | None:
    """The epochs done, if the checkpoint was made at the end of one."""
    if file.metadata is None or file.metadata.phase != "begin":
        return None
    return file.metadata.epoch or None


def _score(file: CheckpointFile, monitor: str | None) -> float | None:
    if file.metadata is None or monitor is None or _epochs_done(file) is None:
        return None
    return file.metadata.metrics.get(monitor)


def _require_scores(plan: PruningPlan, retention: Retention) -> None:
    """Raise if no file has the monitored value: a typo would make all but the latest obsolete."""
    found = [file.metadata for file in (*plan.kept, *plan.obsolete) if file.metadata is not None]
    known = {name for it in found for name, value in it.metrics.items() if math.isfinite(value)}
    if found and retention.keep_best is not None and retention.monitor not in known:
        raise MonitorError(
            f"no checkpoint here has a value of {retention.monitor!r}; logged are {listed(known)}."
            + did_you_mean(str(retention.monitor), known)
        )
