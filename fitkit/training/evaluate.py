"""``evaluate`` and ``predict``: one pass over data with a handler's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.data.model_arguments import takes_one_list
from fitkit.data.sample_count import SizeOf
from fitkit.data.spec import DataSpec, may_list_samples
from fitkit.data.split_batch import is_list_of_samples, split_inputs
from fitkit.engine import evaluation
from fitkit.handler.base_handler import BaseHandler
from fitkit.training.build_evaluation import build_evaluation, evaluation_pass


def evaluate(
    handler: BaseHandler,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    precision: str | None,
    callbacks: Iterable[Callback],
    num_samples: SizeOf | None = None,
) -> dict[str, float]:
    """Loss and metrics over ``data``; see ``NNHandler.evaluate``."""
    values: dict[str, float] = {}
    run = build_evaluation(handler, _with_callbacks(handler, callbacks), precision)
    data_pass = evaluation_pass(handler, data, batch_size, steps, num_samples, in_order=False)
    evaluation.evaluate(run, data_pass, values.update)
    return values


def predict(
    handler: BaseHandler,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    precision: str | None,
    callbacks: Iterable[Callback],
) -> Any:
    """The model's outputs on ``data``; see ``NNHandler.predict``."""
    run = build_evaluation(handler, _with_callbacks(handler, callbacks), precision)
    data_pass = evaluation_pass(handler, data, batch_size, steps, in_order=True)

    def interleave(outputs: list[Any]) -> list[Any]:
        """The outputs of all ranks, which took turns in the order of the data."""
        rounds = zip(*handler.world.gather_all(outputs), strict=True)
        return [output for turn in rounds for output in turn if output is not None]

    return evaluation.predict(run, data_pass, _split_of(handler, data), interleave)


def _split_of(handler: BaseHandler, data: Any) -> Callable[[Any], Any]:
    """The function that takes the inputs out of a batch to predict."""
    spec = handler.parts.validation_data if data is None else DataSpec(data)
    if spec is None or not may_list_samples(spec) or not takes_one_list(handler.module):
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
