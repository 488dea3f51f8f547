"""Forward: computes the loss of a batch, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fitkit.core.errors import ConfigurationError, DataError, add_note, listed
from fitkit.core.tree import iterate_tensors, leading_size
from fitkit.core.types import StepOutput
from fitkit.runtime.precision import Precision


@dataclass
class Forward:
    """Computes the loss of a batch.

    Attributes:
        model: the model as it is called.
        to_device: moves a batch to the device.
        split: splits a batch into ``(inputs, targets)``.
        call: calls the model with inputs.
        loss: ``(outputs, targets) -> loss``, or for score-based models ``(model, *inputs)``.
        precision: autocast and loss scaling.
        custom: the user's step, which replaces everything after ``to_device``.
        compiled: model and loss in one: ``(inputs, targets) -> (loss, outputs)``.
    """

    model: nn.Module
    to_device: Callable[[Any], Any]
    split: Callable[[Any], tuple[Any, Any]]
    call: Callable[[nn.Module, Any], Any]
    loss: Callable[..., Any] | None
    precision: Precision
    custom: Callable[[Any], Any] | None = None
    compiled: Callable[[Any, Any], tuple[Tensor, Any]] | None = None

    def __call__(self, batch: Any) -> tuple[StepOutput, int]:
        """The step's output and the number of samples in the batch."""
        batch = self.to_device(batch)
        try:
            with self.precision.forward():
                output = self._compute(batch)
        except Exception as error:
            add_note(error, f"raised by the step on a batch of {_shapes(batch)}")
            raise
        _require_scalar(output.loss)
        num_samples = output.num_samples
        if num_samples is None:
            num_samples = _num_samples(batch)
        if num_samples == 0:
            raise DataError(
                f"a batch holds no sample ({_shapes(batch)}): leave empty batches out, for "
                f"instance in the sampler or in collate_fn."
            )
        return output, 1 if num_samples is None else num_samples

    def _compute(self, batch: Any) -> StepOutput:
        if self.custom is not None:
            return as_step_output(self.custom(batch))
        inputs, targets = self.split(batch)
        if self.loss is None:
            raise ConfigurationError("no loss function is set: call handler.set_loss_fn(...).")
        if targets is None:
            parts = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
            return StepOutput(self.loss(self.model, *parts))
        if self.compiled is not None:
            loss, outputs = self.compiled(inputs, targets)
            # meters keep the losses of several batches, and CUDA graphs reuse their memory
            return StepOutput(loss.clone(), outputs, targets)
        outputs = self.call(self.model, inputs)
        return StepOutput(self.loss(outputs, targets), outputs, targets)


def as_step_output(result: Any) -> StepOutput:
    """Turn what a custom step returned into a ``StepOutput``.

    Raises:
        DataError: it is neither a loss, a ``StepOutput``, nor a dict of its fields.
    """
    if isinstance(result, StepOutput):
        return result
    if isinstance(result, Tensor):
        return StepOutput(result)
    if isinstance(result, Mapping):
        known = set(StepOutput.__dataclass_fields__)
        unknown = set(result) - known
        if "loss" in result and not unknown:
            return StepOutput(**result)
        raise DataError(
            f"a step's dict needs 'loss' and may have {listed(known - {'loss'})}; received "
            f"{listed(map(str, result))}. Put further values to log under 'logs'."
        )
    raise DataError(
        f"a training step must return the loss (a scalar tensor), a StepOutput or a dict of its "
        f"fields, received {type(result).__name__}."
    )


def _num_samples(batch: Any) -> int | None:
    first = batch[0] if type(batch) in (list, tuple) and batch else batch
    if type(first) is Tensor and first.ndim:  # the common case needs no walk over the batch
        return first.shape[0]
    return leading_size(batch)


def _require_scalar(loss: Any) -> None:
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return
    received = (
        f"a tensor of shape {tuple(loss.shape)}"
        if isinstance(loss, Tensor)
        else f"a {type(loss).__name__}"
    )
    raise DataError(
        f"the loss must be a scalar tensor, received {received}: reduce it to its mean over the "
        f"batch, for instance with .mean()."
    )


def _shapes(batch: Any) -> str:
    tensors = [f"{t.dtype} {tuple(t.shape)}".replace("torch.", "") for t in iterate_tensors(batch)]
    return ", ".join(tensors) or type(batch).__name__
