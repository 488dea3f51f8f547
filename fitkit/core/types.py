"""Types that cross the borders between packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from fitkit.core.errors import ConfigurationError, did_you_mean, listed


class ChoiceEnum(str, Enum):
    """An enum whose members are also accepted as their values, in any case."""

    @classmethod
    def parse(cls, value: Any) -> Any:
        """The member for ``value`` (a member or its string)."""
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
    """What one training or evaluation step leaves behind.

    Attributes:
        loss: the batch's mean loss, a scalar tensor.
        outputs: what the model returned; metrics read it. ``None`` if there is nothing to measure.
        targets: what the outputs are compared with.
        num_samples: samples in the batch, the weight of its loss and metrics; ``None``: the leading
            dimension of the batch's first tensor.
        logs: further scalars of this batch, each the mean over its samples.
        backward: ``False`` in a custom training step that has already called ``backward`` and
            stepped its own optimizers.
    """

    loss: Tensor
    outputs: Any = None
    targets: Any = None
    num_samples: int | None = None
    logs: Mapping[str, Any] = field(default_factory=dict)
    backward: bool = True


@runtime_checkable
class Stateful(Protocol):
    """Anything whose progress can be put into a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Progress as tensors and plain types."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned earlier."""
        ...


class Share(NamedTuple):
    """This process's part of a batch that several processes share.

    Attributes:
        own: samples that this process counts; 0 for a batch that only keeps it in step.
        total: samples of all processes.
    """

    own: int
    total: int


class Batches(Protocol):
    """Batches whose position can be saved."""

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, or ``None`` where that cannot be known."""
        ...

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch`` from batch ``start`` on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What, besides epoch and batch, is needed to stand here again."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand where ``state_dict`` was taken, at the next ``iterate``."""
        ...


class BatchSource(Batches, Protocol):
    """Batches of which several processes have a share each: what the loop reads from."""

    @property
    def share(self) -> Share | None:
        """Of the batch that ``iterate`` gave last; ``None`` if one process has it all."""
        ...


LossFunction = Callable[..., Tensor]
