"""Saver: the base class of ModelCheckpoint and AutoSaver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing.savers import filenames
from fitkit.checkpointing.savers.overhead import OverheadBudget
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saved_files import SavedFiles
from fitkit.core.argument_checks import require_on_error
from fitkit.core.errors import ConfigurationError, Preempted

PREEMPTED_NAME = "preempted.pth"


class Saver(SavedFiles):
    """Base class of ModelCheckpoint and AutoSaver: requests saves and remembers its files.

    Files are remembered relative to ``folder``, so that a run's folder can be moved.

    Args:
        on_error: ``"raise"``: a save that fails ends training with a ``SaveError``; ``"warn"``: it
            is a warning, and training goes on. In both cases earlier files stay whole, and the
            saver's state is as it was before the save.
        background: write behind training, which waits only until the state is copied in memory. One
            save is in flight at a time; training waits for it before the next save. ``fit``
            returns when all files are durable.
        max_overhead: the largest share of wall time, in ``(0, 1)``, that saving may cost.
        name: key of the state in a checkpoint; the state follows it if the files are renamed.

    Attributes:
        retention: which files are kept; ``None``: all of them.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    order = 60
    spans_fits = True
    writes_files = True
    has_fixed_state_types = True
    saves_weights_only: bool = False

    def __init__(
        self,
        *,
        on_error: str = "raise",
        background: bool | None = None,
        max_overhead: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        require_on_error(on_error)
        if background not in (None, True, False):
            raise ConfigurationError(f"background must be True or False, received {background!r}.")
        self.on_error = on_error
        self.background = bool(background)
        self.max_overhead = max_overhead
        self._overhead_budget = None if max_overhead is None else OverheadBudget(max_overhead)

    # ---- requests -------------------------------------------------------------------------------

    def request_save(
        self,
        path: Path,
        *,
        score: float | None = None,
        logs: Mapping[str, float] | None = None,
        epochs_done: int | None = None,
        preempted: bool = False,
    ) -> None:
        """Request that ``path`` is written once all callbacks have handled the current event.

        The same file is written at most once per step.

        Args:
            path: the file.
            score: the monitored value that led to the save.
            logs: values for ranking.
            epochs_done: at the end of an epoch, its number from 1.
            preempted: the process is about to be ended.
        """
        rank = self._rank(logs or {}, at_end=epochs_done is not None)
        is_lasting = self.retention is not None and self.retention.is_lasting(epochs_done)
        details = {"score": score, "rank": rank, "is_lasting": is_lasting, "preempted": preempted}
        self._request(path, details)

    def _request(self, path: Path, details: dict[str, Any]) -> None:
        step = self.handler.state.global_step
        name = self._relative(path)
        if self.last_step == step and filenames.is_version(self.last_path, name):
            return
        self.requested = (*self.requested, {"name": name, **details})
        self.handler.saves.add(SaveRequest(self, path, step, **details))

    def _rank(self, logs: Mapping[str, float], *, at_end: bool) -> float | None:
        comparator = None if self.retention is None else self.retention.comparator
        if comparator is None:
            return None
        if at_end:
            return comparator.read(logs, self.params, self.name)
        return logs.get(comparator.name)

    def resubmit(self) -> None:
        """After a restart, request again what was not done when the checkpoint was made."""
        step = self.handler.state.global_step
        for name in self.in_flight:
            self.handler.saves.add(SaveRequest(self, self.folder / name, step, again=True))
        requested, self.requested = self.requested, ()
        for request in requested:
            details = {key: value for key, value in request.items() if key != "name"}
            self._request(self.folder / request["name"], details)

    def on_exception(self, error: BaseException) -> None:
        """Withdraw requests; before the process is ended, one saver saves the whole state."""
        # not all callbacks have handled the event of the error: no exact resume from its state
        self.handler.saves.withdraw(self)
        self.requested = ()
        can_resume = isinstance(error, Preempted) and not self.saves_weights_only
        if can_resume:  # all ranks raise for the same signal at the same batch
            self.handler.saves.sync_point()
        if can_resume and not len(self.handler.saves):
            self.request_save(self.folder / PREEMPTED_NAME, preempted=True)

    def begin_measuring(self) -> None:
        """Start to count the costs of saving for a call of ``fit``."""
        if self._overhead_budget is not None:
            # optimizers keep up to two values for each weight
            num_bytes = 3 * sum(weight.nbytes for weight in self.model.parameters())
            self._overhead_budget.begin(num_bytes)

    def fits_into_overhead(self) -> bool:
        """Whether ``max_overhead`` allows a save now."""
        budget, saves = self._overhead_budget, self.handler.saves
        return budget is None or (budget.is_due(saves.stats) and not saves.is_busy)

    def measure_batch(self) -> None:
        """Measure by how much a save in flight slows training down; called after each batch."""
        if self._overhead_budget is not None:
            saves = self.handler.saves
            self._overhead_budget.count_batch(saves.stats, is_busy=saves.is_busy)
