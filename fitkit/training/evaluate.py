"""``evaluate`` and ``predict``: one pass over data with a handler's model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.state import Phase
from fitkit.core.validation_sets import log_prefix, named_values, require_distinct_names
from fitkit.data.split_batch import split_inputs
from fitkit.engine import evaluation
from fitkit.handler.base_handler import BaseHandler
from fitkit.training.build_evaluation import build_evaluation, evaluation_passes, prediction_pass


def evaluate(
    handler: BaseHandler,
    data: Any,
    batch_size: int | None,
    steps: int | None,
    precision: str | None,
    callbacks: Iterable[Callback],
    *,
    grad: bool = False,
) -> dict[str, float]:
    """Loss and metrics over ``data``; see ``NNHandler.evaluate``."""
    values: dict[str, float] = {}
    run = build_evaluation(handler, _with_callbacks(handler, callbacks), precision, grad=grad)
    passes = evaluation_passes(handler, data, batch_size, steps)
    require_distinct_names(passes, ("loss", *handler.parts.metrics))
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
    batch_size: int | None,
    steps: int | None,
    precision: str | None,
    callbacks: Iterable[Callback],
    *,
    grad: bool = False,
) -> Any:
    """The model's outputs on ``data``; see ``NNHandler.predict``."""
    run = build_evaluation(handler, _with_callbacks(handler, callbacks), precision, grad=grad)
    data_pass = prediction_pass(handler, data, batch_size, steps)

    def interleave(outputs: list[Any]) -> list[Any]:
        """The outputs of all ranks, which took turns in the order of the data."""
        rounds = zip(*handler.world.gather_all(outputs), strict=True)
        return [output for turn in rounds for output in turn if output is not None]

    return evaluation.predict(run, data_pass, split_inputs, interleave)


def _with_callbacks(handler: BaseHandler, callbacks: Iterable[Callback]) -> CallbackList:
    """The handler's callbacks and those of one evaluation."""
    if handler.session.run is not None and not callbacks:
        return handler.callbacks
    listeners = handler.callbacks.extended(callbacks)
    any_handler: Any = handler
    for callback in listeners:
        callback.handler = any_handler
    return listeners
