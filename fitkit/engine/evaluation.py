"""Evaluation and prediction: the model in evaluation mode, with its averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import DataError, add_note, listed
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS, Logs
from fitkit.core.state import Phase
from fitkit.core.tree import map_tensors
from fitkit.engine.forward import Forward
from fitkit.engine.run import DataPass, EvaluationRun


def evaluate(
    run: EvaluationRun, data_pass: DataPass, record: Callable[[dict[str, float]], None]
) -> None:
    """Loss and metrics over one pass, each sample counted once.

    A resumed evaluation goes on where it was interrupted. ``record`` is called with the values
    before ``on_test_end`` fires.

    Raises:
        DataError: the data yields no batch.
    """
    state, callbacks = run.state, run.callbacks
    with evaluation_mode(run), _explaining_gradients(run):
        run.context.sync_buffers()
        if state.phase is not Phase.TEST:
            state.enter(Phase.TEST)
            data_pass.meters.reset()
            callbacks.fire(Event.TEST_BEGIN, EMPTY_LOGS)
        for batch in run.rank_sync.guard(data_pass.batches(state.epoch, state.batch)):
            index = state.batch
            callbacks.fire(Event.TEST_BATCH_BEGIN, index, EMPTY_LOGS)
            run.context.seed_batch()
            # not inference mode: what a model caches in it could not be used in training
            with torch.set_grad_enabled(run.grad):
                output, num_samples = run.forward(batch)
                share = data_pass.source.share
                own = num_samples if share is None else share.local
                batch_values = data_pass.meters.update(output, own)
                del output  # else the device would hold it through the next forward pass
            state.batch = index + 1
            callbacks.fire(Event.TEST_BATCH_END, index, Logs(batch_values))
            run.rank_sync.check()
        if state.batch == 0:
            raise DataError("the evaluation data yields no batch: check that it is not empty.")
        values = data_pass.meters.compute(run.context.sum_over_ranks)
        record(values)
        callbacks.fire(Event.TEST_END, Logs(values))


def predict(
    run: EvaluationRun,
    data_pass: DataPass,
    inputs_of: Callable[[Any], Any],
    gather: Callable[[list[Any]], list[Any]],
) -> Any:
    """The model's outputs over one pass, joined along the first dimension, on the CPU.

    ``inputs_of`` gives the inputs of a batch; ``gather`` turns this rank's outputs into those of
    all ranks, in the order of the data.

    Raises:
        DataError: the data yields no batch, or outputs cannot be joined.
    """
    callbacks = run.callbacks
    outputs: list[Any] = []
    with evaluation_mode(run), _explaining_gradients(run):
        run.context.sync_buffers()
        callbacks.fire(Event.PREDICT_BEGIN, EMPTY_LOGS)
        for index, batch in enumerate(data_pass.batches()):
            callbacks.fire(Event.PREDICT_BATCH_BEGIN, index, EMPTY_LOGS)
            with torch.set_grad_enabled(run.grad):
                output = _predict_batch(run.forward, inputs_of(batch))
            share = data_pass.source.share
            outputs.append(output if share is None or share.local else None)
            callbacks.fire(Event.PREDICT_BATCH_END, index, EMPTY_LOGS)
        callbacks.fire(Event.PREDICT_END, EMPTY_LOGS)
    if not outputs:
        raise DataError("the data to predict yields no batch: check that it is not empty.")
    return join(gather(outputs))


def _predict_batch(forward: Forward, inputs: Any) -> Any:
    with forward.precision.forward():
        output = forward.call(forward.model, forward.to_device(inputs))
    return map_tensors(lambda tensor: tensor.detach().cpu(), output)


def join(outputs: list[Any]) -> Any:
    """Concatenate the outputs of several batches, tensor by tensor."""
    first = outputs[0]
    _require_same_form(outputs)
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


def _require_same_form(outputs: list[Any]) -> None:
    forms = list(dict.fromkeys(map(_form, outputs)))
    if len(forms) > 1:
        raise DataError(
            f"the model's outputs differ between batches, so they cannot be joined: {forms[0]}, "
            f"then {forms[1]}. Return the same form for each batch, for instance by padding, or "
            f"predict each batch by itself."
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
def _explaining_gradients(run: EvaluationRun) -> Iterator[None]:
    """Inside ``with``, an error for want of gradients says how to get them."""
    try:
        yield
    except RuntimeError as error:
        if not run.grad and "does not require grad" in str(error):
            add_note(
                error,
                "evaluation and prediction record no gradients: pass grad=True to fit, evaluate "
                "or predict, or use torch.enable_grad() where the model differentiates.",
            )
        raise


@contextmanager
def evaluation_mode(run: EvaluationRun) -> Iterator[None]:
    """Inside ``with`` model and loss are in evaluation mode, with their averaged weights.

    Gradients of parameters are those from before afterwards, whatever the model, the loss or a
    step differentiates.
    """
    modes = [(part, part.training) for module in run.modules for part in module.modules()]
    gradients = [(p, p.grad) for p in run.modules.parameters() if p.requires_grad]
    for module in run.modules:
        module.eval()
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with run.context.ema_weights():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for part, training in modes:  # parts may have modes of their own
            part.training = training
