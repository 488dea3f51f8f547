"""From a handler to what an evaluation works with; training evaluates with the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from fitkit.agreement import Agreement
from fitkit.core.callback_list import CallbackList
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError
from fitkit.core.state import FitState
from fitkit.core.types import BatchSource
from fitkit.data.batches import call_model, make_split
from fitkit.data.loaders import DataSpec, make_source
from fitkit.data.shares import Ranks
from fitkit.engine.forward import Forward
from fitkit.engine.run import EvaluationRun, Phase
from fitkit.metrics.meters import Meters
from fitkit.runtime.device import floating_dtype, make_current, to_device
from fitkit.runtime.precision import Precision, make_precision
from fitkit.runtime.signals import SignalWatch

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView


def evaluation_run(
    handler: HandlerView, callbacks: CallbackList, precision: str | None
) -> EvaluationRun:
    """Everything that ``engine.evaluation`` needs."""
    make_current(handler.device)
    return EvaluationRun(
        forward=evaluation_forward(handler, make_precision(precision, handler.device)),
        module=handler.module,
        averaged=lambda: averaged(handler),
        without_gradients=handler.parallel.without_gradients,
        callbacks=callbacks,
        state=FitState(),
        reduce=handler.world.sum,
        agreement=Agreement(FitState(), SignalWatch(())),
        prepare=lambda: same_buffers(handler),
        before_batch=None,
    )


def averaged(handler: HandlerView) -> AbstractContextManager[None]:
    """A context in which the model has its averaged weights, if there are any."""
    average = handler.ema
    return nullcontext() if average is None else average.swapped_into(handler.module)


def same_buffers(handler: HandlerView) -> None:
    """Running statistics differ between processes; those of the main one are saved and scored."""
    handler.world.copy_from_main(handler.module.buffers())


def forward_of(
    handler: HandlerView,
    precision: Precision,
    custom: Callable[..., Any] | None,
    model: nn.Module | None = None,
) -> Forward:
    """From a batch to its loss; ``model`` takes the place of the one that evaluation calls."""
    parts = handler.parts
    state, loss = handler.state, parts.loss_in_use
    return Forward(
        model=parts.model if model is None else model,
        place=partial(to_device, device=parts.device),
        split=make_split(parts.model_type),
        call=call_model,
        loss=None if loss is None else loss.bound(lambda: state.epoch),
        precision=precision,
        custom=None if custom is None else lambda batch: custom(handler, batch),
        compiled=parts.compiled_loss if handler.world.size == 1 else None,
    )


def evaluation_forward(handler: HandlerView, precision: Precision) -> Forward:
    """A custom training step is used for evaluation too, unless there is something better."""
    parts = handler.parts
    custom = parts.evaluation_step
    if custom is None and parts.loss is None:
        custom = parts.train_step
    return forward_of(handler, precision, custom)


def phase_of(
    handler: HandlerView,
    spec: DataSpec,
    *,
    training: bool,
    limit: int | None,
    in_order: bool = False,
) -> Phase:
    """One pass over data, with its sums."""
    return Phase(
        _source(handler, spec, training=training, in_order=in_order),
        Meters(handler.parts.metrics, handler.device),
        limit,
    )


def _source(
    handler: HandlerView, spec: DataSpec, *, training: bool, in_order: bool = False
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
    handler: HandlerView, data: Any, *, batch_size: int | None, steps: int | None, in_order: bool
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
