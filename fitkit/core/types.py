"""Types that several packages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fitkit.core.errors import ConfigurationError, did_you_mean, listed


class ChoiceEnum(str, Enum):
    """An enum whose members may be given as strings, in upper or lower case."""

    @classmethod
    def parse(cls, value: Any) -> Any:
        """The member for ``value``, a member or its string."""
        if isinstance(value, cls):
            return value
        values = [str(member.value) for member in cls]
        if isinstance(value, str) and value.lower() in values:
            return cls(value.lower())
        raise ConfigurationError(
            f"{cls.__name__}: expected one of {listed(values)}, received {value!r}."
            + (did_you_mean(value.lower(), values) if isinstance(value, str) else "")
        )


class ModelType(ChoiceEnum):
    """How a batch becomes a loss.

    - ``classification`` and ``regression``: a batch is ``(inputs, targets)``; the loss function
      gets ``(outputs, targets)``.
    - ``generative``: a batch is ``inputs`` or ``(inputs, ...)``; the targets are the inputs.
    - ``score_based``: a batch is ``inputs`` or ``(inputs, *conditions)``; the loss function draws
      its own times and noise, so it gets ``(model, inputs, *conditions)``. After ``set_sde`` it
      is denoising score matching unless another is set.
    """

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    GENERATIVE = "generative"
    SCORE_BASED = "score_based"


class LoggingMode(ChoiceEnum):
    """Where a handler's log lines go."""

    CONSOLE = "console"
    FILE = "file"
    BOTH = "both"


@dataclass
class StepOutput:
    """The result of one training or evaluation step.

    Attributes:
        loss: the batch's mean loss, a scalar tensor; ``None`` in an evaluation step of a model that
            has none there, such as a detector.
        outputs: the model's outputs, for metrics; ``None``: metrics are not updated.
        targets: the targets of the outputs.
        num_samples: samples in the batch, the weight of its metrics and logs; ``None``: as the data
            are counted (``num_samples=`` of ``fit`` and of the loaders).
        weight: what the mean of the loss is over, such as the number of tokens: a number, or a
            tensor of one element, of at least 0; with 0 the batch does not count. ``None``:
            ``num_samples``.
        logs: more scalars to log, each the mean over the samples of this batch.
        backward: ``False`` in a custom training step that has already called ``backward`` and
            stepped its own optimizers.
    """

    loss: Any
    outputs: Any = None
    targets: Any = None
    num_samples: int | None = None
    weight: Any = None
    logs: Mapping[str, Any] = field(default_factory=dict)
    backward: bool = True


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved in a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain types."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class Share(NamedTuple):
    """The part of this rank in a batch of all ranks.

    Attributes:
        local: samples that this rank counts; 0 for a batch that is only computed because every rank
            must take part in the collectives; ``None``: only the batch itself can tell.
        total: samples of all ranks; ``None``: no rank knows those of the others.
    """

    local: int | None
    total: int | None


class Batches(Protocol):
    """A source of batches whose position can be saved."""

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, or ``None`` if unknown."""

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch`` from batch ``start`` on."""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to restore the position, besides epoch and batch."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position for the next ``iterate``."""


class BatchSource(Batches, Protocol):
    """A source of batches that are split over ranks; the loop reads from it."""

    @property
    def share(self) -> Share | None:
        """The share of this rank in the last batch; ``None``: it is to be counted."""
