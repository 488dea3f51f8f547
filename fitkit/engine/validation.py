"""Validation: the validation sets of an epoch, one after the other."""

from __future__ import annotations

from functools import partial

from fitkit.core.errors import add_note
from fitkit.core.state import Phase
from fitkit.core.validation_sets import log_prefix, named_values
from fitkit.engine.evaluation import evaluate
from fitkit.engine.run import FitRun


def validation_pass(run: FitRun) -> None:
    """The rest of the validation, if this epoch has one: the sets one after the other."""
    state = run.state
    if state.phase is Phase.TEST and state.evaluation_set not in run.validation:
        state.enter(Phase.VALIDATE)  # a resumed script has no such set any more
    is_begun = state.phase is Phase.TEST or bool(state.validated)
    if is_begun or (state.epoch + 1) % run.validate_every == 0:
        while sets := _sets_to_validate(run):
            state.evaluation_set = name = sets[0]
            try:
                evaluate(run, run.validation[name], partial(_record_validation, run))
            except Exception as error:
                if name:
                    add_note(error, f"in the validation set {name!r}")
                raise
    state.enter(Phase.END)


def _sets_to_validate(run: FitRun) -> list[str]:
    """The sets that are left in this epoch; the first is one whose evaluation has begun."""
    state = run.state
    left = [name for name in run.validation if name not in state.validated]
    is_begun = state.phase is Phase.TEST
    return sorted(left, key=lambda name: name != state.evaluation_set) if is_begun else left


def _record_validation(run: FitRun, values: dict[str, float]) -> None:
    state = run.state
    taken = (*state.epoch_logs, *state.logged)
    state.epoch_logs.update(named_values(log_prefix(state.evaluation_set), values, taken))
    state.finish_set(is_last=len(_sets_to_validate(run)) <= 1)
