"""From a handler and the arguments of a call to the ``Run`` that the loop works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import IterableDataset

from fitkit.agreement import Agreement
from fitkit.core.callback_list import CallbackList
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError, Preempted
from fitkit.core.state import FitState
from fitkit.core.types import BatchSource
from fitkit.data.batches import call_model, make_split
from fitkit.data.fetching import is_map_style
from fitkit.data.in_memory import is_in_memory
from fitkit.data.loaders import DataSpec, make_source, split_off_validation
from fitkit.data.shares import Ranks
from fitkit.engine.forward import Forward
from fitkit.engine.run import EvaluationRun, FitRun, Phase
from fitkit.engine.schedule import Schedule
from fitkit.engine.steps import TrainStep
from fitkit.metrics.meters import Meters
from fitkit.options import FitOptions
from fitkit.runtime.device import floating_dtype, to_device
from fitkit.runtime.parallel import DataParallel
from fitkit.runtime.precision import Precision, make_precision
from fitkit.runtime.rng import derive_seed, seed_streams
from fitkit.runtime.signals import SignalWatch

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler


def training_specs(handler: NNHandler, options: FitOptions) -> tuple[DataSpec, DataSpec | None]:
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
        size = train.batch_size if _is_batched_here(options.validation_data) else None
        return train, DataSpec(options.validation_data, size)
    return train, parts.validation_data


def _is_batched_here(data: Any) -> bool:
    """Whether fitkit makes the batches; loaders and iterables of batches bring their own."""
    return is_in_memory(data) or is_map_style(data) or isinstance(data, IterableDataset)


def fit_run(
    handler: NNHandler, options: FitOptions, agreement: Agreement, first: tuple[int, int]
) -> FitRun:
    """Everything that ``engine.loop.fit`` needs.

    Args:
        handler: whose parts are used.
        options: the arguments of the call.
        agreement: what has to happen at the same batch on all processes.
        first: epochs and training batches done when this call began.
    """
    state = handler.state
    train_spec, validation_spec = training_specs(handler, options)
    parts = handler.parts
    if options.compile:
        parts.compile()
    precision = make_precision(options.precision, parts.device)
    schedule = Schedule(
        parts.scheduler,
        interval=parts.scheduler_interval,
        monitor=parts.scheduler_monitor,
        has_validation=validation_spec is not None,
    )
    train = _phase(handler, train_spec, training=True, limit=options.steps_per_epoch)
    validation = None
    if validation_spec is not None:
        validation = _phase(
            handler, validation_spec, training=False, limit=options.validation_steps
        )
    max_steps = options.max_steps
    return FitRun(
        forward=_evaluation_forward(handler, precision),
        module=parts.module,
        averaged=lambda: _averaged(handler),
        callbacks=handler.callbacks,
        state=state,
        reduce=handler.world.sum,
        agreement=agreement,
        prepare=lambda: _same_buffers(handler),
        step=_train_step(handler, options, precision, schedule),
        schedule=schedule,
        train=train,
        validation=validation,
        validate_every=options.validate_every,
        last_epoch=first[0] + options.epochs,
        last_step=None if max_steps is None else first[1] + max_steps,
        learning_rate=parts.learning_rate,
        recover=lambda: None,
        finish=lambda: None,
        blame=_blame(handler),
        before_step=_before_step(handler),
    )


def _train_step(
    handler: NNHandler, options: FitOptions, precision: Precision, schedule: Schedule
) -> TrainStep:
    parts = handler.parts
    world = handler.world
    parallel = DataParallel(world)
    parts.wrapped = model = parallel.wrap(parts.model)
    return TrainStep(
        _forward(handler, precision, parts.train_step, model),
        parts.module,
        parts.optimizer,
        schedule,
        handler.callbacks,
        handler.state,
        accumulation=lambda: handler.gradient_accumulation_steps,
        clip_norm=options.gradient_clipping_norm,
        clip_value=options.gradient_clipping_value,
        num_processes=world.size,
        held_back=lambda: parallel.held_back(model),
        average=parallel.average_gradients,
    )


def evaluation_run(
    handler: NNHandler, callbacks: CallbackList, precision: str | None
) -> EvaluationRun:
    """Everything that ``engine.evaluation`` needs."""
    return EvaluationRun(
        forward=_evaluation_forward(handler, make_precision(precision, handler.device)),
        module=handler.module,
        averaged=lambda: _averaged(handler),
        callbacks=callbacks,
        state=FitState(),
        reduce=handler.world.sum,
        agreement=Agreement(FitState(), SignalWatch(())),
        prepare=lambda: _same_buffers(handler),
    )


def _averaged(handler: NNHandler) -> AbstractContextManager[None]:
    average = handler.ema
    return nullcontext() if average is None else average.swapped_into(handler.module)


def _same_buffers(handler: NNHandler) -> None:
    """Running statistics differ between processes; those of the main one are saved and scored."""
    handler.world.copy_from_main(handler.module.buffers())


def _blame(handler: NNHandler) -> Callable[[BaseException], BaseException]:
    """Whose error it is that ends training; a signal is everybody's."""

    def blame(error: BaseException) -> BaseException:
        is_shared = isinstance(error, (Preempted, KeyboardInterrupt))
        return error if is_shared else handler.world.fail(error)

    return blame


def _before_step(handler: NNHandler) -> Callable[[], None] | None:
    """What a process that is not the main one draws is a function of the step: nothing to save."""
    rank, state = handler.world.rank, handler.state
    if not rank:
        return None
    return lambda: seed_streams(derive_seed(handler.data_seed, "rank", rank, state.global_step))


def _forward(
    handler: NNHandler,
    precision: Precision,
    custom: Callable[..., Any] | None,
    model: nn.Module | None = None,
) -> Forward:
    parts = handler.parts
    state = handler.state
    return Forward(
        model=parts.model if model is None else model,
        place=partial(to_device, device=parts.device),
        split=make_split(parts.model_type),
        call=call_model,
        loss=None if parts.loss is None else parts.loss.bound(lambda: state.epoch),
        precision=precision,
        custom=None if custom is None else lambda batch: custom(handler, batch),
    )


def _evaluation_forward(handler: NNHandler, precision: Precision) -> Forward:
    """A custom training step is used for evaluation too, unless there is something better."""
    parts = handler.parts
    custom = parts.evaluation_step
    if custom is None and parts.loss is None:
        custom = parts.train_step
    return _forward(handler, precision, custom)


def _phase(handler: NNHandler, spec: DataSpec, *, training: bool, limit: int | None) -> Phase:
    return Phase(
        _source(handler, spec, training=training),
        Meters(handler.parts.metrics, handler.device),
        limit,
    )


def _source(
    handler: NNHandler, spec: DataSpec, *, training: bool, in_order: bool = False
) -> BatchSource:
    return make_source(
        spec,
        seed=handler.data_seed,
        dtype=floating_dtype(handler.module),
        training=training,
        in_order=in_order,
        ranks=Ranks(handler.world.rank, handler.world.size),
        device=handler.device,
    )


def evaluation_phase(
    handler: NNHandler, data: Any, *, batch_size: int | None, steps: int | None, in_order: bool
) -> Phase:
    """One pass over ``data``, or over the validation data set before.

    Raises:
        ConfigurationError: there is no data.
    """
    require_count("steps", steps, optional=True)
    if data is not None:
        spec = DataSpec(data, batch_size)
    elif handler.parts.validation_data is not None:
        spec = handler.parts.validation_data.override(batch_size=batch_size, shuffle=None)
    else:
        raise ConfigurationError(
            "no data to evaluate: pass it, or call handler.set_val_loader(...) before."
        )
    source = _source(handler, spec, training=False, in_order=in_order)
    return Phase(source, Meters(handler.parts.metrics, handler.device), steps)


def describe_run(
    run: FitRun, options: FitOptions, first_epoch: int, metrics: Iterable[str], *, resumed: bool
) -> dict[str, Any]:
    """What callbacks read as ``params``."""
    return {
        "epochs": options.epochs,
        "first_epoch": first_epoch,
        "last_epoch": run.last_epoch,
        "steps": run.train.num_batches,
        "validation": run.validation is not None,
        "validation_steps": None if run.validation is None else run.validation.num_batches,
        "validate_every": run.validate_every,
        "metrics": list(metrics),
        "save_on_last_epoch": options.save_on_last_epoch,
        "resumed": resumed,
    }
