"""Build the ``EvaluationRun`` and the passes over data of a handler; ``fit`` uses them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fitkit.core.argument_checks import require_count
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.state import FitState
from fitkit.core.types import BatchSource, ModelType
from fitkit.data.make_source import make_source
from fitkit.data.model_arguments import call_model, model_arguments
from fitkit.data.own_part import AUTO, RANK
from fitkit.data.rank_part import RankPartSource, make_part_source
from fitkit.data.rank_split import RankSplit, RoundRobinSource
from fitkit.data.sample_count import SampleCount, SizeOf
from fitkit.data.spec import DataSpec, is_batched_by_fitkit
from fitkit.data.split_batch import make_split
from fitkit.data.undeclared_split import UndeclaredSplitSource
from fitkit.data.validation_sets import as_validation_sets
from fitkit.engine.evaluation import evaluation_mode
from fitkit.engine.forward import Forward
from fitkit.engine.loss_shapes import ShapeCheck
from fitkit.engine.loss_weight import loss_weight
from fitkit.engine.model_loss import ModelLoss
from fitkit.engine.run import DataPass, EvaluationRun, RankSync
from fitkit.handler.base_handler import BaseHandler
from fitkit.metrics.fit_to_loss import metrics_for
from fitkit.metrics.meters import Meters
from fitkit.runtime.device import floating_dtype, make_current, to_device
from fitkit.runtime.precision import Precision, make_precision
from fitkit.runtime.signals import SignalWatch
from fitkit.training.compare_ranks import require_same_data
from fitkit.training.handler_context import HandlerContext


class HandlerEvaluator:
    """The ``Evaluator`` of a handler, by which a ``ScoreModel`` calls its model."""

    def __init__(self, handler: BaseHandler) -> None:
        self._handler = handler
        self.device = handler.device
        self.shows_progress = handler.world.is_main
        self.next_seed = handler.seeds.next_draw

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of its weights."""
        return floating_dtype(self._handler.module)

    @contextmanager
    def evaluating(self, precision: str | None) -> Iterator[nn.Module]:
        """Inside ``with`` the model is in evaluation mode, with its averaged weights."""
        run = build_evaluation(self._handler, self._handler.callbacks, precision)
        with evaluation_mode(run), run.forward.precision.forward():
            yield run.forward.model


def build_evaluation(
    handler: BaseHandler, callbacks: CallbackList, precision: str | None, *, grad: bool = False
) -> EvaluationRun:
    """Everything that ``engine.evaluation`` needs."""
    make_current(handler.device)
    return EvaluationRun(
        forward=evaluation_forward(handler, make_precision(precision, handler.device)),
        modules=handler.parts.trained_modules,
        context=HandlerContext(handler),
        callbacks=callbacks,
        state=FitState(),
        rank_sync=RankSync(FitState(), SignalWatch(())),
        grad=grad,
    )


def forward_of(
    handler: BaseHandler, precision: Precision, custom: Callable[..., Any] | None
) -> Forward:
    """The ``Forward`` of a handler; ``custom`` is the user's step, ``(handler, batch)``."""
    parts, state = handler.parts, handler.state
    loss, module = parts.loss_in_use, parts.module
    compiled = parts.compiled_loss if handler.world.size == 1 else None
    return Forward(
        model=parts.model,
        to_device=partial(to_device, device=parts.device),
        split=make_split(parts.model_type),
        call=partial(call_model, described_by=module),
        loss=None if loss is None else loss.bound(lambda: state.epoch),
        precision=precision,
        custom=None if custom is None else bound_step(handler, custom),
        weight=None if loss is None else loss_weight(loss),
        may_skip=not handler.parallel.is_sharded,
        compiled=None
        if compiled is None
        else lambda inputs, targets: compiled(model_arguments(module, inputs), targets),
        loss_calls_model=parts.model_type is ModelType.SCORE_BASED,
        shape_check=None if loss is None else ShapeCheck(loss.function),
        model_loss=ModelLoss(parts.module) if parts.has_model_loss else None,
    )


def bound_step(handler: BaseHandler, step: Callable[..., Any]) -> Callable[[Any], Any]:
    """The user's step ``(handler, batch)`` as a function of the batch."""
    parallel = handler.parallel
    if not parallel.is_sharded:
        return lambda batch: step(handler, batch)

    def run(batch: Any) -> Any:
        with parallel.running(handler.module):
            return step(handler, batch)

    return run


def evaluation_forward(handler: BaseHandler, precision: Precision) -> Forward:
    """The ``Forward`` of evaluation: the user's step for it, the loss, or the training step."""
    parts = handler.parts
    custom = parts.evaluation_step
    if custom is None and parts.loss is None:
        custom = parts.train_step
    forward = forward_of(handler, precision, custom)
    forward.needs_loss = False
    return forward


def make_data_pass(
    handler: BaseHandler,
    spec: DataSpec,
    *,
    training: bool = False,
    limit: int | None = None,
    in_order: bool = False,
) -> DataPass:
    """One pass over data; see ``make_source`` for ``training`` and ``in_order``."""
    count, ranks = SampleCount(spec.num_samples), handler.data_world
    options: dict[str, Any] = {
        "count": count,
        "seed": handler.seeds.data,
        "dtype": floating_dtype(handler.module),
        "training": training,
        "in_order": in_order,
        "device": handler.device,
    }
    source: BatchSource
    if spec.split == RANK and ranks.size > 1:
        source = make_part_source(spec, ranks, **options)
    else:
        source = make_source(spec, ranks=RankSplit(ranks.rank, ranks.size), **options)
    # the data of a prediction, which is in order, is the same on all ranks
    if isinstance(source, RoundRobinSource) and ranks.size > 1 and not in_order:

        def make_part(data: Any) -> RankPartSource:
            return make_part_source(replace(spec, data=data), ranks, **options)

        name = "the training data" if training else "the data to validate on"
        source = UndeclaredSplitSource(name, spec.data, source, make_part, ranks)
    # a prediction, which is in order, computes no metrics
    num_ranks = 1 if in_order else ranks.size
    loss = handler.parts.loss_in_use
    arguments = () if loss is None else (loss.function, loss.kwargs)
    metrics = metrics_for(handler.parts.metrics, *arguments)
    meters = Meters(metrics, handler.device, num_ranks=num_ranks)
    return DataPass(source, meters, count.share_in, limit)


def evaluation_specs(
    handler: BaseHandler,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    num_samples: SizeOf | None = None,
    split: str = AUTO,
) -> dict[str, DataSpec]:
    """Each set in ``data`` by name, or the validation data set before.

    Raises:
        ConfigurationError: there is no data.
    """
    require_count("steps", steps, optional=True)
    if data is None:
        specs = {
            name: spec.override(
                batch_size=batch_size, shuffle=None, num_samples=num_samples, split=split
            )
            for name, spec in handler.parts.validation_data.items()
        }
    else:
        specs = {
            name: DataSpec(
                one,
                batch_size if len(sets) == 1 or is_batched_by_fitkit(one) else None,
                num_samples=num_samples,
                split=split,
            )
            for sets in (as_validation_sets(data),)
            for name, one in sets.items()
        }
    if not specs:
        raise _no_data()
    return specs


def prediction_pass(
    handler: BaseHandler,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    num_samples: SizeOf | None = None,
) -> DataPass:
    """One pass over ``data`` in its order, or over the validation data set before.

    Raises:
        ConfigurationError: there is no data, or there are several validation sets, or ranks have
            different data.
    """
    require_count("steps", steps, optional=True)
    sets = handler.parts.validation_data
    if data is None and len(sets) > 1:
        raise ConfigurationError(
            f"prediction reads one set, and the validation sets are {listed(sets)}: pass the data "
            f"of one."
        )
    if data is not None:
        spec = DataSpec(data, batch_size, num_samples=num_samples)
    elif sets:
        spec = next(iter(sets.values())).override(
            batch_size=batch_size, shuffle=None, num_samples=num_samples
        )
    else:
        raise _no_data()
    require_same_data(handler, spec)
    return make_data_pass(handler, spec, limit=steps, in_order=True)


def _no_data() -> ConfigurationError:
    return ConfigurationError(
        "no data to evaluate: pass it, or call handler.set_val_loader(...) before."
    )
