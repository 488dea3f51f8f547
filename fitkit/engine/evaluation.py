"""Evaluation: the model in evaluation mode, with its averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fitkit.core.errors import DataError, add_note
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS, Logs
from fitkit.core.state import Phase
from fitkit.engine.run import DataPass, EvaluationRun
from fitkit.runtime.module_modes import ModuleModes


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
    with evaluation_mode(run):
        run.context.sync_buffers()
        if state.phase is not Phase.TEST:
            state.enter(Phase.TEST)
            data_pass.meters.reset()
            callbacks.fire(Event.TEST_BEGIN, EMPTY_LOGS)
        for batch in run.rank_sync.guard(data_pass.batches(state.epoch, state.batch)):
            index = state.batch
            callbacks.fire(Event.TEST_BATCH_BEGIN, index, EMPTY_LOGS)
            # not inference mode: what a model caches in it could not be used in training
            with torch.set_grad_enabled(run.grad):
                output, _ = run.forward(batch, data_pass.share_in)
                if output is None:
                    values = data_pass.meters.skip()
                else:
                    values = data_pass.meters.update(output, output.num_samples or 0, output.weight)
                del output  # else the device would hold it through the next forward pass
            state.batch = index + 1
            logs = run.batch_logs.of(Event.TEST_BATCH_END, index + 1, data_pass.meters, values)
            callbacks.fire(Event.TEST_BATCH_END, index, logs)
            run.rank_sync.check()
        if state.batch == 0:
            raise DataError("the evaluation data yields no batch: check that it is not empty.")
        values = data_pass.meters.compute(run.context.ranks)
        record(values)
        callbacks.fire(Event.TEST_END, Logs(values))


@contextmanager
def evaluation_mode(run: EvaluationRun) -> Iterator[None]:
    """Inside ``with`` model and loss are in evaluation mode, with their averaged weights.

    Gradients of parameters are those from before afterwards, whatever the model, the loss or a
    step differentiates. An error for want of gradients says how to get them.
    """
    modes = ModuleModes(run.modules)
    gradients: dict[Tensor, Tensor | None] = {
        p: p.grad
        for module in modes.modules
        for p in module._parameters.values()  # noqa: SLF001  several times faster
        if p is not None and p.requires_grad
    }
    run.laid_aside = gradients
    modes.evaluate()
    try:
        _set_gradients(dict.fromkeys(gradients))
        with run.context.ema_weights():
            yield
    except RuntimeError as error:
        if not run.grad and "does not require grad" in str(error):
            add_note(
                error,
                "evaluation and prediction record no gradients: pass grad=True to fit, evaluate "
                "or predict, or use torch.enable_grad() where the model differentiates.",
            )
        raise
    finally:
        run.laid_aside = {}
        _set_gradients(gradients)
        modes.restore()


def _set_gradients(gradients: Mapping[Tensor, Tensor | None]) -> None:
    for parameter, gradient in gradients.items():
        if parameter.grad is not gradient:
            parameter.grad = gradient
