"""Build the ``FitRun`` of a call of ``fit``, from a handler and the call's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.errors import ConfigurationError
from fitkit.core.monitor import MonitoredValue
from fitkit.core.validation_sets import UNNAMED, pass_name, require_distinct_names
from fitkit.data.in_memory import is_in_memory
from fitkit.data.make_source import batch_size_of
from fitkit.data.spec import DataSpec, is_batched_by_fitkit, loader_settings, split_off_validation
from fitkit.data.validation_sets import as_validation_sets
from fitkit.engine.lr_schedule import Schedule, warn_of_interval
from fitkit.engine.run import DataPass, FitRun, RankSync
from fitkit.engine.train_step import TrainStep
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.precision import Precision, make_precision
from fitkit.training.begin_checks import require_batches
from fitkit.training.build_evaluation import evaluation_forward, forward_of
from fitkit.training.data_passes import make_data_passes
from fitkit.training.handler_context import HandlerContext
from fitkit.training.options import FitOptions

Specs = tuple[DataSpec, dict[str, DataSpec]]  # to train on; the validation sets by name


def training_specs(handler: BaseHandler, options: FitOptions) -> Specs:
    """The data to train on, and the sets to validate on by name.

    Raises:
        ConfigurationError: there is nothing to train on.
    """
    parts = handler.parts
    if options.train_data is None:
        if parts.train_data is None:
            raise ConfigurationError(
                "no training data: pass it to fit, or call handler.set_train_loader(...) before."
            )
        train = parts.train_data.override(
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            num_samples=options.num_samples,
            split=options.split,
        )
    else:
        train = DataSpec(
            options.train_data,
            options.batch_size,
            options.shuffle,
            num_samples=options.num_samples,
            split=options.split,
        )
    train = train.with_loader_kwargs(options.loader_kwargs())
    if options.validation_split:
        train, held_out = split_off_validation(train, options.validation_split)
        return train, {UNNAMED: held_out}
    if options.validation_data is None:
        return train, parts.validation_data
    sets = as_validation_sets(options.validation_data)
    return train, {name: _validation_spec(data, train, options) for name, data in sets.items()}


def _validation_spec(data: Any, train: DataSpec, options: FitOptions) -> DataSpec:
    """The validation data of the call, batched as the training data where fitkit makes batches."""
    spec = DataSpec(data, num_samples=options.num_samples, split=options.split)
    if not is_batched_by_fitkit(spec.data):
        return spec
    collates = options.collate_fn is not None and not is_in_memory(spec.data)
    kwargs = {"collate_fn": options.collate_fn} if collates else {}
    return replace(spec, batch_size=train.batch_size, loader_kwargs=kwargs)


def data_of(specs: Specs) -> dict[str, Any]:
    """The objects that a run reads, by the name of the data pass."""
    train, sets = specs
    return {"train": train.data, **{pass_name(name): spec.data for name, spec in sets.items()}}


class HandlerLifecycle:
    """The ``FitLifecycle`` of a handler; ``continues``: this fit continues an interrupted one."""

    def __init__(self, handler: BaseHandler, rank_sync: RankSync, *, continues: bool) -> None:
        self._handler = handler
        self._rank_sync = rank_sync
        self._continues = continues
        self.learning_rate = handler.parts.learning_rate
        self.finish_saves = handler.saves.finish

    def replay_interrupted_event(self) -> None:
        """After a resume, finish the event and the saves in which the checkpoint was made."""
        handler, session = self._handler, self._handler.session
        pending_event, session.pending_event = session.pending_event, None
        if pending_event is not None:
            handler.callbacks.replay_event(pending_event, handler.state.live_logs())
        for saver in handler.callbacks:
            if isinstance(saver, Saver):
                saver.resubmit() if self._continues else handler.saves.delete_obsolete(saver)
        handler.saves.sync_point()
        handler.saves.flush()

    def first_error(self, error: BaseException) -> BaseException:
        """The error to raise for one raised here; the end that all ranks agreed on stays."""
        is_agreed = error is self._rank_sync.agreed_end
        return error if is_agreed else self._handler.world.first_error(error)


def build_run(
    handler: BaseHandler,
    options: FitOptions,
    specs: Specs,
    rank_sync: RankSync,
    *,
    first_epoch: int,
    first_step: int,
    continues: bool,
) -> FitRun:
    """Everything that ``engine.loop.fit`` needs.

    ``first_epoch`` and ``first_step`` are the epochs and training batches that were done when this
    call began; ``continues``: it continues an interrupted call.
    """
    parts = handler.parts
    if options.compile_options is not None:
        parts.compile(options.compile_options)
    precision = make_precision(options.precision, parts.device)
    require_distinct_names(specs[1], ("loss", *parts.metrics))
    train, validation = make_data_passes(handler, options, *specs)
    if options.epochs:
        require_batches(train, validation)
    schedule = _make_schedule(handler, validation)
    if train.num_batches is not None:
        steps = math.ceil(train.num_batches / options.gradient_accumulation_steps)
        warn_of_interval(
            parts.scheduler, parts.scheduler_interval, options.epochs, options.epochs * steps
        )
    return FitRun(
        forward=evaluation_forward(handler, precision),
        modules=parts.trained_modules,
        context=HandlerContext(handler, seeds_ranks=True),
        callbacks=handler.callbacks,
        state=handler.state,
        rank_sync=rank_sync,
        grad=options.grad,
        step=_train_step(handler, options, precision, schedule),
        schedule=schedule,
        train=train,
        validation=validation,
        validate_every=options.validate_every,
        last_epoch=first_epoch + options.epochs,
        last_step=None if options.max_steps is None else first_step + options.max_steps,
        lifecycle=HandlerLifecycle(handler, rank_sync, continues=continues),
    )


def _make_schedule(handler: BaseHandler, validation: Mapping[str, DataPass]) -> Schedule:
    parts = handler.parts
    name = parts.scheduler_monitor or ("val_loss" if validation else "loss")
    monitored, owner = MonitoredValue(name, strict=parts.scheduler_strict), "the scheduler"
    params = _validation_params(handler, validation)
    if isinstance(parts.scheduler, ReduceLROnPlateau):
        monitored.check_possible(params, owner)
    any_handler: Any = handler
    return Schedule(
        parts.scheduler,
        interval=parts.scheduler_interval,
        monitor=name,
        read=lambda logs: monitored.read(logs, params, owner, any_handler),
    )


def _validation_params(handler: BaseHandler, validation: Mapping[str, DataPass]) -> dict[str, Any]:
    """The part of ``params`` that says which values are logged."""
    steps = {name: data_pass.num_batches for name, data_pass in validation.items()}
    known = [number for number in steps.values() if number is not None]
    return {
        "validation": bool(steps),
        "validation_sets": steps,
        "validation_steps": sum(known) if known and len(known) == len(steps) else None,
        "metrics": list(handler.parts.metrics),
    }


def _train_step(
    handler: BaseHandler, options: FitOptions, precision: Precision, schedule: Schedule
) -> TrainStep:
    parts = handler.parts
    stepper = None
    # parameters may be sharded over ranks, and a loss scaler reads values before it steps
    if options.compile_options is not None and handler.world.size == 1:
        stepper = None if precision.reads_to_step else parts.compile_optimizer()
    return TrainStep(
        forward_of(handler, precision, parts.train_step),
        parts.trained_modules,
        parts.optimizer,
        schedule,
        handler.callbacks,
        handler.state,
        accumulation=lambda: handler.gradient_accumulation_steps,
        clip_norm=options.gradient_clipping_norm,
        clip_value=options.gradient_clipping_value,
        sync=handler.parallel.step_sync(
            parts.trained_modules, parts.optimizer, is_custom=parts.train_step is not None
        ),
        stepper=stepper,
    )


def run_params(
    handler: BaseHandler,
    run: FitRun,
    options: FitOptions,
    train_spec: DataSpec,
    first_epoch: int,
    *,
    resumed: bool,
) -> dict[str, Any]:
    """What callbacks read as ``params``."""
    return {
        "batch_size": batch_size_of(train_spec, handler.data_world.size),
        "epochs": options.epochs,
        "first_epoch": first_epoch,
        "last_epoch": run.last_epoch,
        "steps": run.train.num_batches,
        **_validation_params(handler, run.validation),
        "validate_every": run.validate_every,
        "precision": options.precision,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gradient_clipping_norm": options.gradient_clipping_norm,
        "gradient_clipping_value": options.gradient_clipping_value,
        "ema_decay": options.ema_decay,
        "loader": loader_settings(train_spec),
        "save_on_last_epoch": options.save_on_last_epoch,
        "resume": bool(options.resume),
        "resumed": resumed,
    }
