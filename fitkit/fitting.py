"""One call of fit from its arguments to its history: attach, resume, train, detach."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fitkit.agreement import make_agreement
from fitkit.assembly import describe_run, fit_run, training_specs
from fitkit.callbacks.history import History
from fitkit.core.callback import Callback
from fitkit.core.devices import reads_pinned_memory
from fitkit.core.errors import ConfigurationError, Preempted
from fitkit.core.state import Phase as EpochPhase
from fitkit.engine import loop
from fitkit.engine.run import FitRun
from fitkit.options import FitOptions
from fitkit.resuming import finish_what_was_under_way, resume
from fitkit.runtime.determinism import rnn_dropout_remark
from fitkit.runtime.device import make_current
from fitkit.runtime.logger import close_files
from fitkit.runtime.memory import free_pinned_memory
from fitkit.runtime.rng import (
    capture_streams,
    derive_seed,
    kind_of_streams,
    restore_streams,
    seed_streams,
)
from fitkit.runtime.signals import SignalWatch
from fitkit.snapshot import told_as_checkpoint_error, unchanged_on_error
from fitkit.unchanged import unchanged

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler


def run_fit(handler: NNHandler, options: FitOptions) -> History:
    """Train as ``options`` say.

    Raises:
        FitkitError: something is missing or does not fit; nothing was trained.
        BaseException: what a hook, the model or the data raised.
    """
    if handler.unfinished.run is not None:
        raise ConfigurationError(
            "fit was called while a fit of the same handler is under way: call it after that one."
        )
    make_current(handler.device)
    handler.parts.require_trainable()
    training_specs(handler, options)
    if options.fast_dev_run:
        return _dry_run(handler, options)
    attached = _attach(handler, options)
    try:
        return _fit_attached(handler, options)
    finally:
        handler.unfinished.end(handler.device)
        handler.callbacks.depart(attached)
        close_files(handler.logger)
        if reads_pinned_memory(handler.device):  # batches and copies for saves were in it
            free_pinned_memory()


def _attach(handler: NNHandler, options: FitOptions) -> list[Callback]:
    attached: list[Callback] = []
    extra = options.extra_callbacks([*handler.callbacks, *options.callbacks])
    try:
        for callback in (*options.callbacks, *extra):
            handler.callbacks.add(callback)
            attached.append(callback)
    except BaseException:
        handler.callbacks.depart(attached)
        raise
    return attached


def _fit_attached(handler: NNHandler, options: FitOptions) -> History:
    handler.gradient_accumulation_steps = options.gradient_accumulation_steps
    with SignalWatch((signal.SIGINT, *options.preemption_signals)) as watch:
        goes_on = bool(options.resume) or handler.unfinished.loaded
        with unchanged_on_error(handler) if goes_on else nullcontext():
            prepared = _prepare(handler, options, watch)
        if prepared is None:
            return handler.history
        return _train(handler, *prepared)


def _prepare(
    handler: NNHandler, options: FitOptions, watch: SignalWatch
) -> tuple[FitRun, dict[str, Any] | None] | None:
    """Everything up to the first hook.

    Returns:
        the run, and the program's random streams to be put back after it; ``None`` if this call was
        over before the process was restarted.
    """
    state, unfinished = handler.state, handler.unfinished
    if options.seed is not None:
        handler.adopt_seeds(options.seed, options.seed)
    goes_on, is_over = resume(handler, options)
    if is_over:
        return None
    resumed = goes_on or unfinished.loaded
    if not resumed:
        _start_over(handler)
    first_epoch = state.first_epoch if goes_on else state.epoch
    first_step = state.first_step if goes_on else state.global_step
    agreement = make_agreement(state, watch, handler.world, handler.saves)
    run = fit_run(handler, options, agreement, (first_epoch, first_step))
    handler.saves.begin(state.global_step)
    run.finish = handler.saves.finish
    run.recover = lambda: finish_what_was_under_way(handler, goes_on=goes_on)
    params = describe_run(handler, run, options, first_epoch, resumed=resumed)
    handler.callbacks.bind(handler, params, handler.saves.settle)
    with told_as_checkpoint_error() if resumed else nullcontext():
        handler.callbacks.begin()
        unfinished.begin(run, handler.world, is_sharded=handler.parallel.is_sharded)
        outside = _enter_streams(handler, resumed=resumed, reseed=options.seed is not None)
    remark = rnn_dropout_remark(handler.module, handler.device)
    if remark is not None and not handler.calls_made:
        handler.logger.warning(remark)
    handler.count_call(new=not goes_on)
    handler.module.train()
    return run, outside


def _train(handler: NNHandler, run: FitRun, outside: dict[str, Any] | None) -> History:
    handler.history.interrupted = False
    try:
        loop.fit(run)
        run.agreement.check(now=True)  # a signal may have come after the last batch
    except KeyboardInterrupt:
        handler.history.interrupted = True
        handler.logger.warning("interrupted after %d training batches", run.state.global_step)
    except Preempted as error:  # the interpreter shows nothing of it, so what went wrong is logged
        for note in getattr(error, "__notes__", ()):
            handler.logger.error("while the process was ended: %s", note)
        raise
    finally:
        # a save after an interrupt in mid-epoch needs what the other processes have added up
        with nullcontext() if handler.world.is_broken else handler.contributions():
            handler.unfinished.end(handler.device)
        handler.parts.wrapped = None
        if outside is not None:
            restore_streams(outside, handler.device)
    if run.state.stop_reason is not None:
        handler.logger.info("training was stopped: %s", run.state.stop_reason)
    return handler.history


def _enter_streams(handler: NNHandler, *, resumed: bool, reseed: bool) -> dict[str, Any] | None:
    """Put the random streams where this run needs them.

    A handler with a seed draws from streams of its own, which go on from fit to fit; those of the
    program are returned, to be put back. Without a seed the run draws from the program's.
    """
    seed, kept, device = handler.seed, handler.unfinished.streams, handler.device
    outside = capture_streams(device)
    try:
        if kept is not None and (resumed or (seed is not None and not reseed)):
            _say_if_device_changed(handler, kept)
            restore_streams(kept, device)
        elif seed is not None:
            seed_streams(derive_seed(seed, "fit"), device)
    except BaseException:
        restore_streams(outside, device)
        raise
    return None if seed is None else outside


def _say_if_device_changed(handler: NNHandler, streams: dict[str, Any]) -> None:
    saved = kind_of_streams(streams)
    is_known = "device" in streams or not streams["devices"]  # fitkit 0.1 saved all that there were
    if is_known and saved != handler.device.type:
        handler.logger.warning(
            "the checkpoint was saved on %s and the run goes on on %s: its numbers, and what it "
            "draws there, are not bit for bit those of a run that stayed",
            saved,
            handler.device.type,
        )


def _start_over(handler: NNHandler) -> None:
    """A call that does not resume begins with an epoch's beginning."""
    if handler.state.phase is not EpochPhase.BEGIN:
        handler.state.enter(EpochPhase.BEGIN)
        handler.unfinished.forget_window()
    handler.state.mid_step = False
    if handler.optimizer is not None:
        handler.optimizer.zero_grad(set_to_none=True)


# ---- trying out ---------------------------------------------------------------------------------


def _dry_run(handler: NNHandler, options: FitOptions) -> History:
    """A few batches of training and validation, without files; the handler is as before."""
    silent = [callback for callback in handler.callbacks if callback.writes_files]
    kept = [callback for callback in options.callbacks if not callback.writes_files]
    options = replace(options, callbacks=tuple(kept), fast_dev_run=False, resume=None)
    tried = History()
    with unchanged(handler, training_specs(handler, options)):
        for callback in silent:
            handler.callbacks.remove(callback)
        run_fit(handler, options)
        tried.load_state_dict(handler.history.state_dict())
        tried.interrupted = handler.history.interrupted
    return tried
