"""Prepare a call of ``fit``: everything up to its first hook."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from fitkit.checkpointing.format.encoding import encode
from fitkit.core.errors import as_checkpoint_error
from fitkit.core.state import Phase
from fitkit.engine import loop
from fitkit.engine.run import FitRun
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.determinism import rnn_dropout_remark
from fitkit.runtime.rng import (
    capture_streams,
    derive_seed,
    kind_of_streams,
    restore_streams,
    seed_streams,
)
from fitkit.runtime.signals import SignalWatch
from fitkit.training.begin_checks import (
    auto_save_hint,
    drop_unattached_average,
    warn_of_untrained_loss,
)
from fitkit.training.build_run import Specs, build_run, data_of, run_params
from fitkit.training.compare_ranks import RankPlan
from fitkit.training.options import FitOptions
from fitkit.training.rank_sync import make_rank_sync
from fitkit.training.resume import Resumed, resume
from fitkit.training.resume_report import report_finished_call, report_new_start, report_resume
from fitkit.training.run_config import config_changes, is_stop_obsolete, run_config


def prepare_run(
    handler: BaseHandler,
    options: FitOptions,
    specs: Specs,
    watch: SignalWatch,
    in_memory: dict[str, Any] | None,
    rank_plan: RankPlan,
) -> tuple[FitRun, dict[str, Any] | None] | None:
    """Resume what ``resume=`` means, and build the run.

    Args:
        handler: the handler, with the callbacks of the call attached.
        options: the arguments of the call.
        specs: the data to train on and to validate on.
        watch: records signals.
        in_memory: the state of a call that was interrupted in this process.
        rank_plan: what the ranks have found in common.

    Returns:
        the run, and the program's random streams to be restored after it; ``None`` if this call was
        finished before the process was restarted.
    """
    config = run_config(handler, options, *specs)
    if options.seed is not None:
        handler.seeds.start_from(options.seed)
    handler.world.run_on(0, handler.saves.files.lock)
    resumed = resume(handler, options, config, in_memory)
    if resumed.is_finished:
        report_finished_call(handler, str(resumed.source))
        return None
    is_resumed = resumed.continues or handler.session.loaded
    if not is_resumed:
        _begin_new_epoch(handler)
    drop_unattached_average(handler)
    warn_of_untrained_loss(handler)
    run = _build(
        handler,
        options,
        specs,
        watch,
        rank_plan,
        continues=resumed.continues,
        is_resumed=is_resumed,
    )
    with as_checkpoint_error() if is_resumed else nullcontext():
        _begin(handler, run, specs)
        is_reseeded = options.seed is not None
        streams = _enter_streams(handler, is_resumed=is_resumed, is_reseeded=is_reseeded)
    if not handler.session.has_own_streams:
        run.context.seed_rank()
    handler.session.config = config
    _open_call(handler, options, run, resumed)
    handler.weights.optimizer_mode.train()
    handler.module.train()
    return run, streams


def _build(
    handler: BaseHandler,
    options: FitOptions,
    specs: Specs,
    watch: SignalWatch,
    rank_plan: RankPlan,
    *,
    continues: bool,
    is_resumed: bool,
) -> FitRun:
    """Build the run, and bind the callbacks to it."""
    state, saves = handler.state, handler.saves
    first_epoch = state.first_epoch if continues else state.epoch
    run = build_run(
        handler,
        options,
        specs,
        make_rank_sync(handler, watch),
        first_epoch=first_epoch,
        first_step=state.first_step if continues else state.global_step,
        continues=continues,
    )
    run.batch_logs = rank_plan.batch_logs(handler)
    saves.begin(state.global_step)
    params = run_params(handler, run, options, specs[0], first_epoch, resumed=is_resumed)
    handler.callbacks.bind(handler, params, saves.flush)
    handler.callbacks.share_after(rank_plan.share_after, run.rank_sync.share_logs)
    return run


def _begin(handler: BaseHandler, run: FitRun, specs: Specs) -> None:
    """Give restored states to their owners: callbacks, files and the run."""
    saves = handler.saves
    handler.callbacks.begin(partial(encode, keep_types=True), auto_save_hint)
    handler.world.run_on(0, lambda: saves.files.begin(saves.protected))
    handler.session.begin(run, data_of(specs))


def _open_call(handler: BaseHandler, options: FitOptions, run: FitRun, resumed: Resumed) -> None:
    """Count the call, unless it is continued, and say on the screen how it begins."""
    state, session = handler.state, handler.session
    remark = rnn_dropout_remark(handler.module, handler.device)
    if remark is not None and not state.call:
        handler.logger.warning(remark)
    if resumed.continues:
        _report_resume(handler, run, resumed)
    else:
        session.call_ends = {**session.call_ends, state.call: state.counters()}
        state.begin_call()
        if options.resume and state.call == 1:
            report_new_start(handler)
    session.call_is_open = True


def _report_resume(handler: BaseHandler, run: FitRun, resumed: Resumed) -> None:
    """Decide on an earlier stop, and say where the run goes on and what has changed."""
    session, before = handler.session, resumed.config or {}
    of_callbacks = handler.callbacks.config_changes()
    changes = [*session.changes, *config_changes(before, session.config), *of_callbacks]
    if is_stop_obsolete(handler.state, before, session.config, of_callbacks):
        changes.append(f"the stop is withdrawn: {handler.state.stop_reason}")
        handler.state.clear_stop()
        run.rank_sync.restart()
    is_complete = loop.is_complete(run)
    report_resume(handler, run, str(resumed.source), changes, is_complete=is_complete)


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
