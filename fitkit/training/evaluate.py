"""``evaluate`` and ``predict``: one pass over data with a handler's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fitkit.callbacks.prediction_writer import PredictionWriter
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import ConfigurationError
from fitkit.core.state import Phase
from fitkit.core.validation_sets import log_prefix, named_values, require_distinct_names
from fitkit.data.model_arguments import declares_one_list
from fitkit.data.own_part import AUTO, require_split
from fitkit.data.sample_count import SampleCount, SizeOf
from fitkit.data.spec import DataSpec, may_list_samples
from fitkit.data.split_batch import is_list_of_samples, split_inputs
from fitkit.engine import evaluation
from fitkit.engine.forward import Forward
from fitkit.engine.join_outputs import BatchOutputs
from fitkit.engine.model_loss import named_inputs
from fitkit.engine.prediction import Prediction
from fitkit.engine.run import EvaluationRun
from fitkit.handler.base_handler import BaseHandler
from fitkit.training.build_evaluation import (
    bound_step,
    build_evaluation,
    evaluation_specs,
    make_data_pass,
    prediction_pass,
)
from fitkit.training.compare_ranks import compare_evaluation


@dataclass(frozen=True)
class PassOptions:
    """The arguments that ``evaluate`` and ``predict`` share; ``NNHandler`` describes them."""

    batch_size: int | None = None
    num_samples: SizeOf | None = None
    steps: int | None = None
    precision: str | None = None
    grad: bool = False
    callbacks: Iterable[Callback] = ()
    split: str = AUTO


def evaluate(handler: BaseHandler, data: Any, options: PassOptions) -> dict[str, float]:
    """Loss and metrics over ``data``; see ``NNHandler.evaluate``."""
    values: dict[str, float] = {}
    run = _build_run(handler, options)
    require_split(options.split)
    specs = evaluation_specs(
        handler, data, options.batch_size, options.steps, options.num_samples, options.split
    )
    require_distinct_names(specs, ("loss", *handler.parts.metrics))
    rank_plan, specs = compare_evaluation(handler, run.callbacks, specs)
    run.batch_logs = rank_plan.batch_logs(handler)
    passes = {n: make_data_pass(handler, spec, limit=options.steps) for n, spec in specs.items()}
    for name, data_pass in passes.items():
        run.state.enter(Phase.VALIDATE)
        prefix = log_prefix(name).removeprefix("val_")
        of_set: dict[str, float] = {}
        with handler.state.evaluating(name):
            evaluation.evaluate(run, data_pass, of_set.update)
        values |= named_values(prefix, of_set, values)
    return values


def predict(
    handler: BaseHandler,
    data: Any,
    options: PassOptions,
    *,
    tensors_only: bool = False,
    return_outputs: bool = True,
) -> Any:
    """The model's outputs on ``data``; see ``NNHandler.predict``."""
    prediction = _prediction(handler, data, options, tensors_only=tensors_only)

    def interleave(outputs: list[BatchOutputs | None]) -> list[BatchOutputs]:
        """The outputs of all ranks, which took turns in the order of the data."""
        rounds = zip(*handler.data_world.gather_all(outputs), strict=True)
        return [output for turn in rounds for output in turn if output is not None]

    if return_outputs:
        return prediction.joined(interleave)
    prediction.run_callbacks()
    return None


def predict_batches(
    handler: BaseHandler, data: Any, options: PassOptions, *, tensors_only: bool = False
) -> Iterator[Any]:
    """The outputs batch by batch; see ``NNHandler.predict_batches``."""
    prediction = _prediction(handler, data, options, tensors_only=tensors_only)
    # collectives, so they are not part of a pass that a rank may leave early
    prediction.run.context.sync_buffers()
    if handler.ema is not None:
        handler.world.copy_from_main(handler.ema.buffers())
    return prediction.batches()


def _prediction(
    handler: BaseHandler, data: Any, options: PassOptions, *, tensors_only: bool
) -> Prediction:
    run = _build_run(handler, options)
    split, num_samples = _split_of(handler, data), options.num_samples
    if num_samples is None and split is not split_inputs:
        of_others = SampleCount()
        num_samples = lambda batch: (  # noqa: E731
            len(batch) if is_list_of_samples(batch) else of_others.of(batch)
        )
    data_pass = prediction_pass(handler, data, options.batch_size, options.steps, num_samples)
    compute = _compute_of(handler, run.forward, split)
    return Prediction(run, data_pass, compute, tensors_only)


def _build_run(handler: BaseHandler, options: PassOptions) -> EvaluationRun:
    callbacks = _with_callbacks(handler, options.callbacks)
    writes = any(isinstance(one, PredictionWriter) for one in callbacks)
    if writes and handler.data_world.size != handler.world.size:
        raise ConfigurationError(
            "PredictionWriter would write each batch once for each rank that computes it together "
            "with others: write what predict returns on rank 0."
        )
    return build_evaluation(handler, callbacks, options.precision, grad=options.grad)


def _compute_of(
    handler: BaseHandler, forward: Forward, split: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """The outputs of a batch: by the user's step, or by the model."""
    step = handler.parts.predict_step
    if step is not None:
        bound = bound_step(handler, step)
        return lambda batch: bound(forward.to_device(batch))
    has_model_loss = handler.parts.has_model_loss

    def compute(batch: Any) -> Any:
        # a model that may compute its loss gets all entries by name, as in training
        inputs = named_inputs(handler.module, batch) if has_model_loss else None
        inputs = split(batch) if inputs is None else inputs
        return forward.call(forward.model, forward.to_device(inputs))

    return compute


def _split_of(handler: BaseHandler, data: Any) -> Callable[[Any], Any]:
    """The function that takes the inputs out of a batch to predict."""
    sets = handler.parts.validation_data
    spec = DataSpec(data) if data is not None else next(iter(sets.values()), None)
    if spec is None or not may_list_samples(spec) or not declares_one_list(handler.module):
        return split_inputs
    return lambda batch: batch if is_list_of_samples(batch) else split_inputs(batch)


def _with_callbacks(handler: BaseHandler, callbacks: Iterable[Callback]) -> CallbackList:
    """The handler's callbacks and those of one evaluation."""
    if handler.session.run is not None and not callbacks:
        return handler.callbacks
    listeners = handler.callbacks.extended(callbacks)
    any_handler: Any = handler
    for callback in listeners:
        callback.handler = any_handler
    return listeners
