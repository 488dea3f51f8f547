"""Prediction: the model's outputs over one pass, batch by batch or joined."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fitkit.core.errors import DataError
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS, Logs
from fitkit.engine.evaluation import evaluation_mode
from fitkit.engine.join_outputs import (
    BatchOutputs,
    copy_to_host,
    join,
    needs_count,
    require_joinable,
    select_tensors,
)
from fitkit.engine.run import DataPass, EvaluationRun

Gather = Callable[[list[BatchOutputs | None]], list[BatchOutputs]]


@dataclass
class Prediction:
    """One pass of ``predict``.

    Attributes:
        run: the model, its modes and weights, and the callbacks.
        data_pass: gives the batches, in the order of the data.
        compute: the outputs of a batch, from the model or from the user's step.
        tensors_only: leave out the parts of the outputs that are no tensors.
    """

    run: EvaluationRun
    data_pass: DataPass
    compute: Callable[[Any], Any]
    tensors_only: bool = False

    def joined(self, gather: Gather) -> Any:
        """The outputs of all batches, joined.

        ``gather`` turns this rank's outputs into those of all ranks, in the order of the data.

        Raises:
            DataError: the data yields no batch, or outputs cannot be joined.
        """
        outputs: list[BatchOutputs | None] = []
        with evaluation_mode(self.run):
            self.run.context.sync_buffers()
            for batch in self._batches(nullcontext):
                if batch is not None:  # now, not after hours of prediction
                    require_joinable(batch, tensors_only=self.tensors_only)
                outputs.append(batch)
        return join(gather(outputs))

    def run_callbacks(self) -> None:
        """Predict for the callbacks alone: no outputs are kept."""
        with evaluation_mode(self.run):
            self.run.context.sync_buffers()
            for _ in self._batches(nullcontext):
                pass

    def batches(self) -> Iterator[Any]:
        """Yield the outputs of this rank's batches, one by one.

        Modes and weights of the model are put back before each ``yield``, so the caller may train
        in between, stop, or never come back. To train on several ranks all of them must yield
        equally many batches.
        """
        with closing(self._batches(lambda: evaluation_mode(self.run))) as batches:
            for batch in batches:
                if batch is not None:
                    yield batch.outputs

    def _batches(
        self, mode: Callable[[], AbstractContextManager[None]]
    ) -> Generator[BatchOutputs | None, None, None]:
        """The outputs of each batch; ``None`` for one that is only computed for other ranks."""
        callbacks = self.run.callbacks
        with mode():
            callbacks.fire(Event.PREDICT_BEGIN, EMPTY_LOGS)
        index = -1
        try:
            for index, batch in enumerate(self.data_pass.batches()):
                with mode():
                    outputs = self._predict_batch(index, batch)
                yield outputs
        except GeneratorExit:  # the caller wants no more
            with mode():
                callbacks.fire(Event.PREDICT_END, Logs({"ended_early": 1.0}))
            raise
        if index < 0:
            raise DataError("the data to predict yields no batch: check that it is not empty.")
        with mode():
            callbacks.fire(Event.PREDICT_END, EMPTY_LOGS)

    def _predict_batch(self, index: int, batch: Any) -> BatchOutputs | None:
        run = self.run
        run.callbacks.fire(Event.PREDICT_BATCH_BEGIN, index, EMPTY_LOGS)
        with torch.set_grad_enabled(run.grad), run.forward.precision.forward():
            computed = self.compute(batch)
        share, predicted = self.data_pass.source.share, None
        if share is None or share.local != 0:
            # to count may warn that it is not certain, which seldom matters here
            num_samples = self.data_pass.share_in(batch).local if needs_count(computed) else None
            if self.tensors_only:
                computed = select_tensors(BatchOutputs(computed, num_samples)).outputs
            predicted = BatchOutputs(copy_to_host(computed), num_samples)
            run.callbacks.fire(Event.PREDICT_OUTPUTS, index, predicted.outputs)
        run.callbacks.fire(Event.PREDICT_BATCH_END, index, EMPTY_LOGS)
        return predicted
