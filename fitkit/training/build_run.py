"""Build the ``FitRun`` of a call of ``fit``, from a handler and the call's options."""

from __future__ import annotations

import math
from typing import Any

from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.errors import ConfigurationError, Preempted
from fitkit.data.make_source import batch_size_of
from fitkit.data.spec import (
    DataSpec,
    is_batched_by_fitkit,
    loader_settings,
    require_rereadable,
    split_off_validation,
)
from fitkit.distributed.loss_sync import make_loss_sync
from fitkit.engine.lr_schedule import Schedule, warn_of_interval
from fitkit.engine.run import DataPass, FitRun, RankSync
from fitkit.engine.train_step import TrainStep
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.precision import Precision, make_precision
from fitkit.training.build_evaluation import (
    HandlerContext,
    evaluation_forward,
    forward_of,
    make_data_pass,
)
from fitkit.training.options import FitOptions

Specs = tuple[DataSpec, DataSpec | None]


def training_specs(handler: BaseHandler, options: FitOptions) -> Specs:
    """The data to train on and the data to validate on.

    Raises:
        ConfigurationError: there is nothing to train on.
    """
    parts = handler.parts
    if options.train_data is None:
        if parts.train_data is None:
            raise ConfigurationError(
                "no training data: pass it to fit, or call handler.set_train_loader(...) before."
            )
        train = parts.train_data.override(batch_size=options.batch_size, shuffle=options.shuffle)
    else:
        train = DataSpec(options.train_data, options.batch_size, options.shuffle)
    if options.validation_split:
        return split_off_validation(train, options.validation_split)
    if options.validation_data is not None:
        size = train.batch_size if is_batched_by_fitkit(options.validation_data) else None
        return train, DataSpec(options.validation_data, size)
    return train, parts.validation_data


def data_of(specs: Specs) -> dict[str, Any]:
    """The objects that a run reads, by the name of the data pass."""
    train, validation = specs
    data = {"train": train.data}
    return data if validation is None else {**data, "validation": validation.data}


class HandlerLifecycle:
    """The ``FitLifecycle`` of a handler; ``continues``: this fit continues an interrupted one."""

    def __init__(self, handler: BaseHandler, *, continues: bool) -> None:
        self._handler = handler
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
        """The error to raise for one raised here; a signal reaches all ranks, so it stays."""
        is_signal = isinstance(error, (Preempted, KeyboardInterrupt))
        return error if is_signal else self._handler.world.fail(error)


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
    schedule = Schedule(
        parts.scheduler,
        interval=parts.scheduler_interval,
        monitor=parts.scheduler_monitor,
        has_validation=specs[1] is not None,
    )
    train, validation = _data_passes(handler, options, *specs)
    if train.num_batches is not None:
        steps = math.ceil(train.num_batches / options.gradient_accumulation_steps)
        warn_of_interval(
            parts.scheduler, parts.scheduler_interval, options.epochs, options.epochs * steps
        )
    return FitRun(
        forward=evaluation_forward(handler, precision),
        modules=parts.trained_modules,
        context=HandlerContext(handler, seeds_batches=True),
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
        lifecycle=HandlerLifecycle(handler, continues=continues),
    )


def _data_passes(
    handler: BaseHandler, options: FitOptions, train: DataSpec, validation: DataSpec | None
) -> tuple[DataPass, DataPass | None]:
    """The pass over the training data, and that over the validation data if there are any."""
    limits = (options.steps_per_epoch, options.validation_steps)
    if options.overfit_batches is None:
        train_pass = make_data_pass(handler, train, training=True, limit=limits[0])
        if validation is None:
            return train_pass, None
        return train_pass, make_data_pass(handler, validation, limit=limits[1])
    require_rereadable(train, "overfit_batches")
    # both train and validate on the first batches of the training data
    passes = [make_data_pass(handler, train, in_order=True) for _ in limits]
    overfit_limit = _num_overfit_batches(options.overfit_batches, passes[0].num_batches)
    for data_pass, limit in zip(passes, limits, strict=True):
        data_pass.limit = overfit_limit if limit is None else min(overfit_limit, limit)
    return passes[0], None if validation is None else passes[1]


def _num_overfit_batches(overfit_batches: int | float, num_batches: int | None) -> int:
    if isinstance(overfit_batches, int):
        return overfit_batches
    if num_batches is None:
        raise ConfigurationError(
            f"overfit_batches={overfit_batches} is a share of the batches, but the data does not "
            f"say how many there are: pass their number as an int."
        )
    return max(round(overfit_batches * num_batches), 1)


def _train_step(
    handler: BaseHandler, options: FitOptions, precision: Precision, schedule: Schedule
) -> TrainStep:
    parts, parallel = handler.parts, handler.parallel
    parts.wrapped = model = parallel.wrap(parts.model)
    stepper = None
    # parameters may be sharded over ranks, and a loss scaler reads values before it steps
    if options.compile_options is not None and handler.world.size == 1:
        stepper = None if precision.reads_to_step else parts.compile_optimizer()
    return TrainStep(
        forward_of(handler, precision, parts.train_step, model),
        parts.trained_modules,
        parts.optimizer,
        schedule,
        handler.callbacks,
        handler.state,
        accumulation=lambda: handler.gradient_accumulation_steps,
        clip_norm=options.gradient_clipping_norm,
        clip_value=options.gradient_clipping_value,
        num_ranks=handler.world.size,
        no_sync=lambda: parallel.no_sync(model),
        average=parallel.average_gradients,
        loss_sync=make_loss_sync(parts.trained_modules, handler.world, parallel),
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
        "batch_size": batch_size_of(train_spec, handler.world.size),
        "epochs": options.epochs,
        "first_epoch": first_epoch,
        "last_epoch": run.last_epoch,
        "steps": run.train.num_batches,
        "validation": run.validation is not None,
        "validation_steps": None if run.validation is None else run.validation.num_batches,
        "validate_every": run.validate_every,
        "metrics": list(handler.parts.metrics),
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
