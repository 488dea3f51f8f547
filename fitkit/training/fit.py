"""One call of ``fit``: attach callbacks, resume, train, detach."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from fitkit.callbacks.history import History
from fitkit.core.callback import Callback
from fitkit.core.device_capabilities import has_async_copies
from fitkit.core.errors import Preempted, always_after
from fitkit.engine import loop
from fitkit.engine.run import FitRun
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.preserve_state import preserve_handler_state
from fitkit.handler.state_dict import rollback_on_error
from fitkit.runtime.device import make_current
from fitkit.runtime.handler_logger import close_files
from fitkit.runtime.out_of_memory import free_pinned_memory
from fitkit.runtime.rng import restore_streams
from fitkit.runtime.signals import SignalWatch
from fitkit.training.begin_checks import buffer_watches
from fitkit.training.build_run import Specs, training_specs
from fitkit.training.compare_ranks import compare_fit
from fitkit.training.options import FitOptions
from fitkit.training.prepare import prepare_run
from fitkit.training.rank_sync import make_rank_sync
from fitkit.training.resume import interrupted_call


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
    in_memory = interrupted_call(handler, options)
    attached: list[Callback] = []
    extra = options.extra_callbacks([*handler.callbacks, *options.callbacks])
    extra += buffer_watches(handler)
    with always_after(
        lambda: handler.session.end(handler.device),
        lambda: handler.callbacks.detach(attached),
        lambda: _release(handler),
    ):
        for callback in (*options.callbacks, *extra):
            handler.callbacks.add(callback)
            attached.append(callback)
        return _fit_attached(handler, options, specs, in_memory)


def _release(handler: BaseHandler) -> None:
    handler.saves.files.unlock()
    close_files(handler.logger)
    if has_async_copies(handler.device):  # batches and copies for saves were in it
        free_pinned_memory()


def _fit_attached(
    handler: BaseHandler, options: FitOptions, specs: Specs, in_memory: dict[str, Any] | None
) -> History:
    rank_plan, options, train, sets = compare_fit(handler, options, *specs)
    specs = train, sets
    handler.gradient_accumulation_steps = options.gradient_accumulation_steps
    signals = (signal.SIGINT, *options.preemption_signals)
    with SignalWatch(signals) as watch, handler.world.listening(signals):
        may_load = bool(options.resume) or handler.session.loaded
        with rollback_on_error(handler) if may_load else nullcontext():
            prepared = prepare_run(handler, options, specs, watch, in_memory, rank_plan)
        if prepared is None:
            make_rank_sync(handler, watch).check(now=True)
            return handler.history
        return _train(handler, *prepared)


def _train(handler: BaseHandler, run: FitRun, streams: dict[str, Any] | None) -> History:
    state = handler.state
    handler.world.locate(lambda: f"epoch {state.epoch}, step {state.global_step}")
    handler.history.interrupted = False
    handler.weights.trained_before_restore = None
    with always_after(lambda: _end(handler), lambda: _leave_streams(handler, streams)):
        try:
            loop.fit(run)
            handler.session.call_is_open = False
            run.rank_sync.check(now=True)  # a signal may have come after the last batch
        except KeyboardInterrupt:
            if handler.world.is_broken:  # of this rank alone, and the others have failed with it
                raise
            handler.history.interrupted = True
            handler.logger.warning("interrupted after %d training batches", run.state.global_step)
        except Preempted as error:  # a SystemExit is not printed, so its notes are logged
            for note in getattr(error, "__notes__", ()):
                handler.logger.error("while the process was ended: %s", note)
            raise
    if run.state.stop_reason is not None:
        handler.logger.info("training was stopped: %s", run.state.stop_reason)
    return handler.history


def _end(handler: BaseHandler) -> None:
    if handler.session.run is not None:
        handler.session.run.step.close()
    # a save after an interrupt inside an epoch needs what the other ranks have accumulated
    with (
        nullcontext()
        if handler.world.is_broken
        else handler.session.gathered_from_ranks("the end of fit")
    ):
        handler.session.end(handler.device)


def _leave_streams(handler: BaseHandler, streams: dict[str, Any] | None) -> None:
    if streams is not None:
        restore_streams(streams, handler.device)


def _fast_dev_run(handler: BaseHandler, options: FitOptions, specs: Specs) -> History:
    """A few batches of training and validation, without files; the handler stays as it was."""
    file_writers = [callback for callback in handler.callbacks if callback.writes_files]
    others = tuple(callback for callback in options.callbacks if not callback.writes_files)
    options = replace(options, callbacks=others, fast_dev_run=False, resume=None)
    history = History()
    with preserve_handler_state(handler, [specs[0], *specs[1].values()]):
        for callback in file_writers:
            handler.callbacks.remove(callback)
        run_fit(handler, options)
        history.load_state_dict(handler.history.state_dict())
        history.interrupted = handler.history.interrupted
    return history
