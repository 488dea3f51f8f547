"""The loop: fit, one epoch, one pass. Everything else is a callback."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fitkit.core.callback_list import Event
from fitkit.core.errors import DataError, add_note
from fitkit.core.logs import EMPTY_LOGS, Logs
from fitkit.core.state import Phase as EpochPhase
from fitkit.engine.evaluation import evaluate
from fitkit.engine.run import FitRun, Phase


def fit(run: FitRun) -> None:
    """Train until the call is complete or somebody stops it; the final hooks run in any case.

    Raises:
        BaseException: the first error, after ``on_exception`` and ``on_train_end`` of every
            callback; later ones are attached to it as notes.
    """
    errors: list[BaseException] = []
    try:
        run.callbacks.fire(Event.TRAIN_BEGIN, EMPTY_LOGS)
        run.recover()
        while not _is_complete(run):
            run_epoch(run)
    except BaseException as error:  # noqa: BLE001  raised below, when everybody has heard it
        errors.append(run.blame(error))
        errors += map(run.blame, run.callbacks.fire_to_all(Event.EXCEPTION, errors[0]))
    errors += map(run.blame, run.callbacks.fire_to_all(Event.TRAIN_END, _epoch_logs(run)))
    try:
        run.finish()
    except BaseException as error:  # noqa: BLE001  as above
        errors.append(run.blame(error))
    # an interrupt is answered with the history: what failed after it must not end with it
    errors = [error for error in errors if not isinstance(error, KeyboardInterrupt)] or errors
    if errors:
        for later in errors[1:]:
            add_note(errors[0], f"then {type(later).__name__}: {later}")
        raise errors[0]


def _is_complete(run: FitRun) -> bool:
    """Whether nothing is left to do; an epoch that has begun is always brought to its end."""
    state = run.state
    if state.phase is not EpochPhase.BEGIN:
        return False
    return state.epoch >= run.last_epoch or _must_stop(run)


def _steps_are_used_up(run: FitRun) -> bool:
    return run.last_step is not None and run.state.global_step >= run.last_step


def _must_stop(run: FitRun) -> bool:
    return run.agreement.must_stop or _steps_are_used_up(run)


def run_epoch(run: FitRun) -> None:
    """One epoch from wherever it stands: begin, train, validate, end."""
    state = run.state
    if state.phase is EpochPhase.BEGIN:
        state.epoch_logs = {}
        state.contributed = {}
        state.enter(EpochPhase.TRAIN)
        run.train.meters.reset()
        run.callbacks.fire(Event.EPOCH_BEGIN, state.epoch, EMPTY_LOGS)
    if state.phase is EpochPhase.TRAIN:
        train_pass(run)
    if state.phase is not EpochPhase.END:
        validation_pass(run)
    end_epoch(run)


def train_pass(run: FitRun) -> None:
    """The rest of the epoch's training batches."""
    state, callbacks, step, meters = run.state, run.callbacks, run.step, run.train.meters
    listens_to_ends = callbacks.listens(Event.TRAIN_BATCH_END)
    source, agreement, start, num_batches = run.train.source, run.agreement, state.batch, None
    # an epoch has at least one batch; further ones may be unwanted since before a restart
    is_done = state.batch > 0 and _must_stop(run)
    for batch in () if is_done else remaining(run.train, state.epoch, start):
        index = state.batch
        if index == start:  # known for sure when the pass has begun: batch sizes may have changed
            num_batches = run.train.num_batches
        if run.before_batch is not None:
            run.before_batch()
        callbacks.fire(Event.TRAIN_BATCH_BEGIN, index, EMPTY_LOGS)
        state.mid_step = True
        share = source.share
        output, own = step(batch, is_last=index + 1 == num_batches, share=share)
        values = meters.update(output, own)
        del output  # else it would live through the next forward pass
        state.mid_step = False
        state.advance_batch(own if share is None else share.total)
        is_used_up = _steps_are_used_up(run)
        if is_used_up:
            state.stop(f"max_steps: {run.last_step} training batches are done", final=False)
        if listens_to_ends:
            callbacks.fire(Event.TRAIN_BATCH_END, index, Logs(values))
        agreement.check()
        if is_used_up or agreement.must_stop:
            break
    if state.batch == 0:
        raise DataError(
            "the training data yields no batch: check that it is not empty, that drop_last does "
            "not drop all of it, and that a generator is not used up by an earlier epoch."
        )
    step.finish()
    state.epoch_logs = meters.compute(run.reduce)
    state.enter(EpochPhase.VALIDATE)


def remaining(phase: Phase, epoch: int, start: int) -> Iterator[Any]:
    """The batches of a pass from ``start`` on, up to its limit; none is fetched in vain."""
    stop = None if phase.limit is None else max(phase.limit - start, 0)
    batches = islice(phase.source.iterate(epoch, start), stop)
    return batches if phase.clock is None else phase.clock.timed(batches)


def validation_pass(run: FitRun) -> None:
    """The rest of the validation, if this epoch has one."""
    state = run.state
    is_due = (state.epoch + 1) % run.validate_every == 0
    if run.validation is not None and (is_due or state.phase is EpochPhase.TEST):
        evaluate(run, run.validation, lambda values: _record_validation(run, values))
    else:
        state.enter(EpochPhase.END)


def _record_validation(run: FitRun, values: dict[str, float]) -> None:
    run.state.epoch_logs.update({f"val_{name}": value for name, value in values.items()})
    run.state.enter(EpochPhase.END)


def end_epoch(run: FitRun) -> None:
    """Schedules, then progress, then the hooks, so that a save goes on with the next epoch."""
    state = run.state
    learning_rate = run.learning_rate()
    if learning_rate is not None:
        state.epoch_logs["lr"] = learning_rate
    logs = _epoch_logs(run)
    run.schedule.after_epoch(logs)
    run.agreement.share(state.contributed)
    epoch = state.epoch
    state.advance_epoch()
    run.callbacks.fire(Event.EPOCH_END, epoch, logs)
    run.agreement.check(now=True)


def _epoch_logs(run: FitRun) -> Logs:
    """The epoch's values and what callbacks contributed, seen live."""
    return Logs(ChainMap(run.state.contributed, run.state.epoch_logs))
