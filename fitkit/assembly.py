"""From a handler and the arguments of a call to the ``Run`` that the loop works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from fitkit.agreement import Agreement
from fitkit.compiled_steps import CompiledSteps
from fitkit.core.errors import ConfigurationError, Preempted
from fitkit.data.fetching import is_map_style
from fitkit.data.in_memory import is_in_memory
from fitkit.data.loaders import DataSpec, batch_size_of, split_off_validation
from fitkit.data.spec import loader_settings, require_rereadable
from fitkit.engine.run import FitRun, Phase
from fitkit.engine.schedule import Schedule
from fitkit.engine.steps import TrainStep
from fitkit.evaluating import averaged, evaluation_forward, forward_of, phase_of, same_buffers
from fitkit.options import FitOptions
from fitkit.runtime.precision import Precision, make_precision
from fitkit.runtime.rng import derive_seed, seed_streams

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
    if options.compile_options is not None:
        parts.compile(options.compile_options)
    precision = make_precision(options.precision, parts.device)
    schedule = _schedule(handler, has_validation=validation_spec is not None)
    train, validation = _passes(handler, options, train_spec, validation_spec)
    max_steps = options.max_steps
    return FitRun(
        forward=evaluation_forward(handler, precision),
        module=parts.module,
        averaged=lambda: averaged(handler),
        without_gradients=handler.parallel.without_gradients,
        callbacks=handler.callbacks,
        state=state,
        reduce=handler.world.sum,
        agreement=agreement,
        prepare=lambda: same_buffers(handler),
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
        before_batch=_before_batch(handler),
    )


def _passes(
    handler: NNHandler, options: FitOptions, train: DataSpec, validation: DataSpec | None
) -> tuple[Phase, Phase | None]:
    """The pass over the training data, and that over the validation data if there are any."""
    steps, validation_steps = options.steps_per_epoch, options.validation_steps
    chosen = options.overfit_batches
    if chosen is None:
        phase = phase_of(handler, train, training=True, limit=steps)
        if validation is None:
            return phase, None
        return phase, phase_of(handler, validation, training=False, limit=validation_steps)
    require_rereadable(train, "overfit_batches")
    phases = [phase_of(handler, train, training=False, limit=None, in_order=True) for _ in "tv"]
    limit = _batches_meant(chosen, phases[0].num_batches)
    for phase, least in zip(phases, (steps, validation_steps), strict=True):
        phase.limit = limit if least is None else min(limit, least)
    return phases[0], None if validation is None else phases[1]


def _batches_meant(chosen: int | float, num_batches: int | None) -> int:
    if isinstance(chosen, int):
        return chosen
    if num_batches is None:
        raise ConfigurationError(
            f"overfit_batches={chosen} is a share of the batches, but the data does not say how "
            f"many there are: pass their number as an int."
        )
    return max(round(chosen * num_batches), 1)


def _schedule(handler: NNHandler, *, has_validation: bool) -> Schedule:
    parts = handler.parts
    return Schedule(
        parts.scheduler,
        interval=parts.scheduler_interval,
        monitor=parts.scheduler_monitor,
        has_validation=has_validation,
    )


def _train_step(
    handler: NNHandler, options: FitOptions, precision: Precision, schedule: Schedule
) -> TrainStep:
    parts = handler.parts
    parallel = handler.parallel
    parts.wrapped = model = parallel.wrap(parts.model)
    return TrainStep(
        forward_of(handler, precision, parts.train_step, model),
        parts.module,
        parts.optimizer,
        schedule,
        handler.callbacks,
        handler.state,
        accumulation=lambda: handler.gradient_accumulation_steps,
        clip_norm=options.gradient_clipping_norm,
        clip_value=options.gradient_clipping_value,
        num_processes=handler.world.size,
        held_back=lambda: parallel.held_back(model),
        average=parallel.average_gradients,
        stepper=_stepper(handler, options, precision),
    )


def _stepper(handler: NNHandler, options: FitOptions, precision: Precision) -> CompiledSteps | None:
    is_alone = handler.world.size == 1  # others may have parts of parameters
    if options.compile_options is None or not is_alone or precision.reads_to_step:
        return None
    return handler.parts.compiled_optimizer(options.compile_options)


def _blame(handler: NNHandler) -> Callable[[BaseException], BaseException]:
    """Whose error it is that ends training; a signal is everybody's."""

    def blame(error: BaseException) -> BaseException:
        is_shared = isinstance(error, (Preempted, KeyboardInterrupt))
        return error if is_shared else handler.world.fail(error)

    return blame


def _before_batch(handler: NNHandler) -> Callable[[], None] | None:
    """What a process that is not the main one draws is a function of the batch: nothing to save."""
    rank, state, device = handler.world.rank, handler.state, handler.device
    if not rank:
        return None

    def seed() -> None:
        place = (state.global_step, state.phase.value, state.batch)
        seed_streams(derive_seed(handler.data_seed, "rank", rank, *place), device)

    return seed


def describe_run(
    handler: NNHandler, run: FitRun, options: FitOptions, first_epoch: int, *, resumed: bool
) -> dict[str, Any]:
    """What callbacks read as ``params``."""
    return {
        "batch_size": batch_size_of(training_specs(handler, options)[0], handler.world.size),
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
        "loader": loader_settings(training_specs(handler, options)[0]),
        "save_on_last_epoch": options.save_on_last_epoch,
        "resumed": resumed,
    }
