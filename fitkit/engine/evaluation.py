"""Evaluation and prediction: the model in evaluation mode, with its averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.callback_list import Event
from fitkit.core.errors import DataError, listed
from fitkit.core.logs import EMPTY_LOGS, Logs
from fitkit.core.state import Phase as EpochPhase
from fitkit.core.tree import map_tensors
from fitkit.engine.forward import Forward
from fitkit.engine.run import EvaluationRun, Phase


def evaluate(run: EvaluationRun, phase: Phase, record: Callable[[dict[str, float]], None]) -> None:
    """The loss and metrics over one pass, each sample counted once.

    Args:
        run: what to evaluate.
        phase: over which data.
        record: is given the values before ``on_test_end`` is heard.

    Raises:
        DataError: the data yields nothing.
    """
    state, callbacks = run.state, run.callbacks
    with evaluation_mode(run):
        run.prepare()
        if state.phase is not EpochPhase.TEST:
            state.enter(EpochPhase.TEST)
            phase.meters.reset()
            callbacks.fire(Event.TEST_BEGIN, EMPTY_LOGS)
        stop = None if phase.limit is None else max(phase.limit - state.batch, 0)
        for batch in islice(phase.source.iterate(state.epoch, state.batch), stop):
            index = state.batch
            callbacks.fire(Event.TEST_BATCH_BEGIN, index, EMPTY_LOGS)
            if run.before_batch is not None:
                run.before_batch()
            with run.without_gradients():
                output, num_samples = run.forward(batch)
                share = phase.source.share
                own = num_samples if share is None else share.own
                batch_values = phase.meters.update(output, own)
                del output  # else the device would hold it through the next forward pass
            state.batch = index + 1
            callbacks.fire(Event.TEST_BATCH_END, index, Logs(batch_values))
            run.agreement.check()
        if state.batch == 0:
            raise DataError("the evaluation data yields no batch: check that it is not empty.")
        values = phase.meters.compute(run.reduce)
        record(values)
        callbacks.fire(Event.TEST_END, Logs(values))


def predict(
    run: EvaluationRun,
    phase: Phase,
    inputs_of: Callable[[Any], Any],
    gather: Callable[[list[Any]], list[Any]],
) -> Any:
    """The outputs over one pass, joined along the first dimension, on the CPU.

    Args:
        run: what to predict with.
        phase: on which data.
        inputs_of: the inputs in a batch.
        gather: the outputs of all processes in the order of the data, from those of this one.

    Raises:
        DataError: the data yields nothing, or outputs cannot be joined.
    """
    callbacks = run.callbacks
    outputs: list[Any] = []
    with evaluation_mode(run):
        run.prepare()
        callbacks.fire(Event.PREDICT_BEGIN, EMPTY_LOGS)
        stop = phase.limit
        for index, batch in enumerate(islice(phase.source.iterate(0), stop)):
            callbacks.fire(Event.PREDICT_BATCH_BEGIN, index, EMPTY_LOGS)
            with run.without_gradients():
                output = _predict_batch(run.forward, inputs_of(batch))
            share = phase.source.share
            outputs.append(output if share is None or share.own else None)
            callbacks.fire(Event.PREDICT_BATCH_END, index, EMPTY_LOGS)
        callbacks.fire(Event.PREDICT_END, EMPTY_LOGS)
    if not outputs:
        raise DataError("the data to predict yields no batch: check that it is not empty.")
    return join(gather(outputs))


def _predict_batch(forward: Forward, inputs: Any) -> Any:
    with forward.precision.forward():
        output = forward.call(forward.model, forward.place(inputs))
    return map_tensors(lambda tensor: tensor.cpu(), output)


def join(outputs: list[Any]) -> Any:
    """Batches of outputs as one, tensor by tensor along the first dimension."""
    first = outputs[0]
    _require_alike(outputs)
    if isinstance(first, Tensor):
        if first.ndim == 0:
            raise DataError(
                "the model returned a scalar for a batch, so outputs cannot be joined along the "
                "first dimension: return one row per sample."
            )
        return torch.cat(outputs)
    if isinstance(first, dict):
        return {key: join([output[key] for output in outputs]) for key in first}
    if isinstance(first, (tuple, list)):
        joined = [join(list(parts)) for parts in zip(*outputs, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    raise DataError(
        f"a model's outputs must be tensors, or tuples, lists or dicts of them, to be joined; "
        f"received {type(first).__name__}."
    )


def _require_alike(outputs: list[Any]) -> None:
    forms = list(dict.fromkeys(map(_form, outputs)))
    if len(forms) > 1:
        raise DataError(
            f"the model's outputs differ between batches, so they cannot be joined: {forms[0]}, "
            f"then {forms[1]}. Bring them to one form, for instance by padding, or predict each "
            f"batch by itself."
        )


def _form(output: Any) -> str:
    """What has to be the same in every batch for outputs to be joined."""
    if isinstance(output, Tensor):
        return f"tensors of shape ({', '.join(['batch', *map(str, output.shape[1:])])})"
    if isinstance(output, dict):
        return f"dicts of {listed(map(str, output))}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__}s of {len(output)}"
    return type(output).__name__


@contextmanager
def evaluation_mode(run: EvaluationRun) -> Iterator[None]:
    """Evaluation mode and averaged weights; both are undone, also on errors."""
    modes = [(module, module.training) for module in run.module.modules()]
    run.module.eval()
    try:
        with run.averaged():
            yield
    finally:
        _restore_modes(modes)


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
