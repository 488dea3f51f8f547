"""Forward: computes the loss of a batch, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fitkit.core.errors import ConfigurationError, DataError, add_note, listed
from fitkit.core.tree import is_sequence, shapes_of
from fitkit.core.types import Share, StepOutput
from fitkit.engine.loss_shapes import ShapeCheck
from fitkit.engine.loss_weight import LossWeight, as_count, as_weight
from fitkit.runtime.precision import Precision

Count = Callable[[Any, int | None], Share]


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
        weight: what the mean of ``loss`` is over; ``None``: samples.
        may_skip: whether ``custom`` may return ``None``, also on some ranks only.
        needs_loss: whether ``custom`` must return a loss, as in training.
        loss_calls_model: whether the loss gets the model and the inputs, as for score-based models.
        shape_check: refuses targets that the loss would broadcast; ``None``: nothing is checked.
        model_loss: ``(model, batch, to_device) -> output`` where the model computes the loss.
    """

    model: nn.Module
    to_device: Callable[[Any], Any]
    split: Callable[[Any], tuple[Any, Any]]
    call: Callable[[nn.Module, Any], Any]
    loss: Callable[..., Any] | None
    precision: Precision
    custom: Callable[[Any], Any] | None = None
    compiled: Callable[[Any, Any], tuple[Tensor, Any]] | None = None
    weight: LossWeight | None = None
    may_skip: bool = True
    needs_loss: bool = True
    loss_calls_model: bool = False
    shape_check: ShapeCheck | None = None
    model_loss: Callable[[nn.Module, Any, Callable[[Any], Any]], StepOutput] | None = None

    @property
    def counts_by_itself(self) -> bool:
        """Whether the weight of a batch may be another number than the data counts."""
        return any(part is not None for part in (self.custom, self.weight, self.model_loss))

    def __call__(self, batch: Any, count: Count) -> tuple[StepOutput | None, Share]:
        """The step's output with its samples and weight, ``None`` if it skipped the batch.

        Args:
            batch: the batch, on the host.
            count: counts its samples; gets their number if the step has returned it. A batch of 0
                samples has no weight.
        """
        try:
            with self.precision.forward():
                output = self._compute(batch)
        except Exception as error:
            add_remedy(error)
            add_note(error, f"raised by the step on a batch of {shapes_of(batch)}")
            raise
        if output is None:
            if not self.may_skip:
                raise DataError(
                    "a step skipped a batch by returning None, but all ranks of a sharded model "
                    "have to call it for each batch: call it, and return StepOutput(loss, "
                    "weight=0) instead."
                )
            return None, Share(0, None)
        if output.loss is not None or self.needs_loss or self.custom is None:
            _require_scalar(output.loss)
        share = count(batch, as_count(output.num_samples))
        output.num_samples = share.local
        if output.weight is None or not share.local:
            output.weight = share.local
        elif self.custom is not None or self.weight is None:
            output.weight = as_weight(output.weight)
        return output, share

    def _compute(self, batch: Any) -> StepOutput | None:
        if self.custom is not None:
            return as_step_output(self.custom(self.to_device(batch)))
        if self.loss is None:
            if self.model_loss is None:
                raise ConfigurationError("no loss function is set: call handler.set_loss_fn(...).")
            return self.model_loss(self.model, batch, self.to_device)
        inputs, targets = self.split(batch)
        weight = None
        if self.weight is not None and not self.weight.needs_outputs:
            weight = self.weight.function(None, targets)  # on the host, where it can be read
        inputs, targets = self._moved(inputs, targets)
        if self.loss_calls_model:
            parts = inputs if is_sequence(inputs) else (inputs,)
            return StepOutput(self.loss(self.model, *parts))
        if self.compiled is not None:
            loss, outputs = self.compiled(inputs, targets)
            if self.shape_check is not None and self.shape_check.is_due(outputs, targets):
                self.shape_check.require_same(outputs, targets)
            # meters keep the losses of several batches, and CUDA graphs reuse their memory
            loss = loss.clone()
        else:
            outputs = self.call(self.model, inputs)
            loss = self._loss_of(outputs, targets)
        if self.weight is not None and self.weight.needs_outputs:
            weight = as_weight(self.weight.function(outputs, targets))
        return StepOutput(loss, outputs, targets, weight=weight)

    def _loss_of(self, outputs: Any, targets: Any) -> Any:
        check: Any = self.shape_check
        loss: Any = self.loss
        if check is not None and check.is_due(outputs, targets):
            return check.call(loss, outputs, targets)
        return loss(outputs, targets)

    def _moved(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        if targets is inputs:  # a generative model's
            inputs = targets = self.to_device(inputs)
            return inputs, targets
        moved: tuple[Any, Any] = self.to_device((inputs, targets))
        return moved


def add_remedy(error: Exception) -> None:
    """Add to torch's error for a normalization of one sample what to do."""
    if "Expected more than 1 value per channel when training" in str(error):
        add_note(
            error,
            "a batch of one sample, often the last of an epoch or the part of one rank, has no "
            "variance to normalize by: leave it out with drop_last=True, or choose another "
            "batch_size",
        )


def as_step_output(result: Any) -> StepOutput | None:
    """Turn what a custom step returned into a ``StepOutput`` that may be changed.

    Raises:
        DataError: it is neither a loss, a ``StepOutput``, a dict of its fields, nor ``None``.
    """
    if result is None:
        return None
    if isinstance(result, StepOutput):
        return replace(result)
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
        f"a training step must return the loss (a scalar tensor), a StepOutput, a dict of its "
        f"fields, or None to skip the batch; received {type(result).__name__}."
    )


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
