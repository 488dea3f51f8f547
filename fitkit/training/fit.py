"""One call of ``fit``: attach callbacks, resume, train, detach."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from fitkit.callbacks.history import History
from fitkit.core.callback import Callback
from fitkit.core.device_capabilities import has_async_copies
from fitkit.core.errors import Preempted, as_checkpoint_error
from fitkit.core.state import Phase
from fitkit.engine import loop
from fitkit.engine.run import FitRun
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.preserve_state import preserve_handler_state
from fitkit.handler.state_dict import rollback_on_error
from fitkit.runtime.determinism import rnn_dropout_remark
from fitkit.runtime.device import make_current
from fitkit.runtime.handler_logger import close_files
from fitkit.runtime.out_of_memory import free_pinned_memory
from fitkit.runtime.rng import (
    capture_streams,
    derive_seed,
    kind_of_streams,
    restore_streams,
    seed_streams,
)
from fitkit.runtime.signals import SignalWatch
from fitkit.training.build_run import Specs, build_run, run_params, training_specs
from fitkit.training.options import FitOptions
from fitkit.training.rank_sync import make_rank_sync
from fitkit.training.resume import resume


def run_fit(handler: BaseHandler, options: FitOptions) -> History:
    """Train as ``options`` say; ``NNHandler.fit`` describes it.

    Raises:
        FitkitError: something is missing or does not fit; nothing was trained.
        BaseException: what a hook, the model or the data raised.
    """
    handler.session.require_idle("fit")
    make_current(handler.device)
    handler.parts.require_trainable()
    if options.fast_dev_run:
        options = options.for_fast_dev_run()
    specs = training_specs(handler, options)
    if options.fast_dev_run:
        return _fast_dev_run(handler, options, specs)
    attached: list[Callback] = []
    extra = options.extra_callbacks([*handler.callbacks, *options.callbacks])
    try:
        for callback in (*options.callbacks, *extra):
            handler.callbacks.add(callback)
            attached.append(callback)
        return _fit_attached(handler, options, specs)
    finally:
        handler.session.end(handler.device)
        handler.callbacks.detach(attached)
        close_files(handler.logger)
        if has_async_copies(handler.device):  # batches and copies for saves were in it
            free_pinned_memory()


def _fit_attached(handler: BaseHandler, options: FitOptions, specs: Specs) -> History:
    handler.gradient_accumulation_steps = options.gradient_accumulation_steps
    with SignalWatch((signal.SIGINT, *options.preemption_signals)) as watch:
        may_load = bool(options.resume) or handler.session.loaded
        with rollback_on_error(handler) if may_load else nullcontext():
            prepared = _prepare(handler, options, specs, watch)
        if prepared is None:
            return handler.history
        return _train(handler, *prepared)


def _prepare(
    handler: BaseHandler, options: FitOptions, specs: Specs, watch: SignalWatch
) -> tuple[FitRun, dict[str, Any] | None] | None:
    """Everything up to the first hook.

    Returns:
        the run, and the program's random streams to be restored after it; ``None`` if this call was
        complete before the process was restarted.
    """
    state, session = handler.state, handler.session
    if options.seed is not None:
        handler.seeds.start_from(options.seed)
    continues, is_complete = resume(handler, options)
    if is_complete:
        handler.calls_made += 1
        return None
    is_resumed = continues or session.loaded
    if not is_resumed:
        _begin_new_epoch(handler)
    first_epoch = state.first_epoch if continues else state.epoch
    run = build_run(
        handler,
        options,
        specs,
        make_rank_sync(state, watch, handler.world, handler.saves),
        first_epoch=first_epoch,
        first_step=state.first_step if continues else state.global_step,
        continues=continues,
    )
    handler.saves.begin(state.global_step)
    params = run_params(handler, run, options, specs[0], first_epoch, resumed=is_resumed)
    handler.callbacks.bind(handler, params, handler.saves.flush)
    with as_checkpoint_error() if is_resumed else nullcontext():
        handler.callbacks.begin()
        session.begin(run)
        is_reseeded = options.seed is not None
        streams = _enter_streams(handler, is_resumed=is_resumed, is_reseeded=is_reseeded)
    remark = rnn_dropout_remark(handler.module, handler.device)
    if remark is not None and not handler.calls_made:
        handler.logger.warning(remark)
    if not continues:
        state.begin_call()
    handler.calls_made += 1
    handler.module.train()
    return run, streams


def _train(handler: BaseHandler, run: FitRun, streams: dict[str, Any] | None) -> History:
    handler.history.interrupted = False
    try:
        loop.fit(run)
        run.rank_sync.check(now=True)  # a signal may have come after the last batch
    except KeyboardInterrupt:
        handler.history.interrupted = True
        handler.logger.warning("interrupted after %d training batches", run.state.global_step)
    except Preempted as error:  # a SystemExit is not printed, so its notes are logged
        for note in getattr(error, "__notes__", ()):
            handler.logger.error("while the process was ended: %s", note)
        raise
    finally:
        # a save after an interrupt inside an epoch needs what the other ranks have accumulated
        with nullcontext() if handler.world.is_broken else handler.session.gathered_from_ranks():
            handler.session.end(handler.device)
        handler.parts.wrapped = None
        if streams is not None:
            restore_streams(streams, handler.device)
    if run.state.stop_reason is not None:
        handler.logger.info("training was stopped: %s", run.state.stop_reason)
    return handler.history


def _enter_streams(
    handler: BaseHandler, *, is_resumed: bool, is_reseeded: bool
) -> dict[str, Any] | None:
    """Set the random streams to where this run begins.

    A handler with a seed has its own streams, which continue from fit to fit: those of the program
    are returned, to be restored after the run. Without a seed the run draws from the program's.
    """
    seed, device = handler.seed, handler.device
    saved = handler.session.pending.get("rng")
    outside = capture_streams(device)
    try:
        if saved is not None and (is_resumed or (seed is not None and not is_reseeded)):
            _warn_if_device_changed(handler, saved)
            restore_streams(saved, device)
        elif seed is not None:
            seed_streams(derive_seed(seed, "fit"), device)
    except BaseException:
        restore_streams(outside, device)
        raise
    return None if seed is None else outside


def _warn_if_device_changed(handler: BaseHandler, streams: dict[str, Any]) -> None:
    saved = kind_of_streams(streams)
    is_known = (
        "device" in streams or not streams["devices"]
    )  # fitkit 0.1 saved those of all devices
    if is_known and saved != handler.device.type:
        handler.logger.warning(
            "the checkpoint was saved on %s and the run goes on on %s: its numbers, and what it "
            "draws there, are not bit for bit those of a run that stayed",
            saved,
            handler.device.type,
        )


def _begin_new_epoch(handler: BaseHandler) -> None:
    """Start an interrupted epoch over, as a call does that resumes nothing."""
    if handler.state.phase is not Phase.BEGIN:
        handler.state.enter(Phase.BEGIN)
        handler.session.drop_epoch_progress()
    handler.state.mid_step = False
    if handler.optimizer is not None:
        handler.optimizer.zero_grad(set_to_none=True)


def _fast_dev_run(handler: BaseHandler, options: FitOptions, specs: Specs) -> History:
    """A few batches of training and validation, without files; the handler stays as it was."""
    file_writers = [callback for callback in handler.callbacks if callback.writes_files]
    others = tuple(callback for callback in options.callbacks if not callback.writes_files)
    options = replace(options, callbacks=others, fast_dev_run=False, resume=None)
    history = History()
    with preserve_handler_state(handler, specs):
        for callback in file_writers:
            handler.callbacks.remove(callback)
        run_fit(handler, options)
        history.load_state_dict(handler.history.state_dict())
        history.interrupted = handler.history.interrupted
    return history
