"""The training loop: fit, an epoch, a pass. Everything else is a callback."""

from __future__ import annotations

import math

from fitkit.core.errors import DataError, raise_first
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS
from fitkit.core.state import Phase
from fitkit.core.validation_sets import UNNAMED
from fitkit.engine.run import FitRun
from fitkit.engine.validation import validation_pass


def fit(run: FitRun) -> None:
    """Train until the call is complete or is stopped; the final hooks run in any case.

    Raises:
        BaseException: the first error, after ``on_exception`` and ``on_train_end`` of every
            callback; later ones are attached to it as notes.
    """
    errors: list[BaseException] = []
    first_error = run.lifecycle.first_error
    try:
        run.callbacks.fire(Event.TRAIN_BEGIN, EMPTY_LOGS)
        run.lifecycle.replay_interrupted_event()
        while not is_complete(run):
            run_epoch(run)
        run.rank_sync.share_logs()
    except BaseException as error:  # noqa: BLE001  raised below, after the hooks
        errors.append(first_error(error))
        errors += map(first_error, run.callbacks.fire_to_all(Event.EXCEPTION, errors[0]))
    errors += map(first_error, run.callbacks.fire_to_all(Event.TRAIN_END, run.state.live_logs()))
    try:
        run.lifecycle.finish_saves()
    except BaseException as error:  # noqa: BLE001  as above
        errors.append(first_error(error))
    # fit returns the history after Ctrl-C, so an error that followed it must be raised instead
    errors = [error for error in errors if not isinstance(error, KeyboardInterrupt)] or errors
    if errors:
        raise_first(errors)


def is_complete(run: FitRun) -> bool:
    """Whether no epoch is left to begin; one that has begun is always finished."""
    state = run.state
    if state.phase is not Phase.BEGIN:
        return False
    return state.epoch >= run.last_epoch or _must_stop(run)


def _max_steps_reached(run: FitRun) -> bool:
    return run.last_step is not None and run.state.global_step >= run.last_step


def _must_stop(run: FitRun) -> bool:
    return run.rank_sync.must_stop or _max_steps_reached(run)


def run_epoch(run: FitRun) -> None:
    """One epoch, from where it was interrupted: begin, train, validate, end."""
    state = run.state
    if state.phase is Phase.BEGIN:
        state.clear_logs()
        run.context.seed_rank()  # a checkpoint between two epochs has the streams of rank 0 only
        state.enter(Phase.TRAIN)
        run.train.meters.reset()
        run.callbacks.fire(Event.EPOCH_BEGIN, state.epoch, EMPTY_LOGS)
    if state.phase is Phase.TRAIN:
        train_pass(run)
    if state.phase is not Phase.END:
        validation_pass(run)
    end_epoch(run)


def train_pass(run: FitRun) -> None:
    """The rest of the epoch's training batches."""
    state, callbacks, step, meters = run.state, run.callbacks, run.step, run.train.meters
    rank_sync, start, num_batches = run.rank_sync, state.batch, None
    # an epoch has at least one batch; a stop may have been asked for before a resume
    is_done = state.batch > 0 and _must_stop(run)
    for batch in () if is_done else rank_sync.guard(run.train.batches(state.epoch, start)):
        index = state.batch
        if index == start:  # a source may know its length only once its pass has begun
            num_batches = run.train.num_batches
        callbacks.fire(Event.TRAIN_BATCH_BEGIN, index, EMPTY_LOGS)
        state.mid_step = True
        is_last = index + 1 == num_batches
        output, num_samples = step(batch, is_last=is_last, count=run.train.share_in)
        if output is None:
            values = meters.skip()
        else:
            values = meters.update(output, output.num_samples or 0, output.weight)
        del output  # else its memory would be held through the next forward pass
        state.mid_step = False
        state.advance_batch(num_samples)
        is_last_step = _max_steps_reached(run)
        if is_last_step:
            state.stop(f"max_steps: {run.last_step} training batches are done", final=False)
        logs = run.batch_logs.of(Event.TRAIN_BATCH_END, state.global_step, meters, values)
        callbacks.fire(Event.TRAIN_BATCH_END, index, logs)
        rank_sync.check()
        if is_last_step or rank_sync.must_stop:
            break
    if state.batch == 0:
        raise DataError(
            "the training data yields no batch: check that it is not empty, that drop_last does "
            "not drop all of it, and that a generator is not used up by an earlier epoch."
        )
    step.finish()
    # NaN if the step skipped every batch
    state.epoch_logs = {"loss": math.nan} | meters.compute(run.context.ranks)
    state.enter(Phase.VALIDATE)


def end_epoch(run: FitRun) -> None:
    """Step the schedule and count the epoch before the hooks: a save in them goes on after it."""
    state = run.state
    state.evaluation_set = UNNAMED
    learning_rate = state.last_lr
    if learning_rate is None:  # no step was taken, or a file of fitkit 0.2 does not say
        learning_rate = run.lifecycle.learning_rate()
    if learning_rate is not None:
        state.epoch_logs["lr"] = float(learning_rate)
    logs = run.state.live_logs()
    run.rank_sync.share_logs()  # first: the schedule may monitor such a value
    run.schedule.after_epoch(logs)
    epoch = state.epoch
    state.advance_epoch()
    run.callbacks.fire(Event.EPOCH_END, epoch, logs)
    run.schedule.check_hooks(logs)
    run.rank_sync.check(now=True)
