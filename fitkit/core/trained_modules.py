"""TrainedModules: the model and the loss, which share an optimizer, windows and clipping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

LOSS_PREFIX = ".loss."  # no path of a module begins with a dot


@dataclass(frozen=True)
class TrainedModules:
    """The modules whose parameters and buffers training changes.

    Attributes:
        model: the model without wrappers.
        loss: the loss, if it is a module that may have parameters, buffers or modes.
    """

    model: nn.Module
    loss: nn.Module | None = None

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.model,) if self.loss is None else (self.model, self.loss))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters, each once; those of the loss have a prefix."""
        of_loss = self.named_loss_parameters().items()
        return {
            **dict(self.model.named_parameters()),
            **{f"{LOSS_PREFIX}{name}": parameter for name, parameter in of_loss},
        }

    def parameters(self) -> list[nn.Parameter]:
        """All parameters, each once."""
        return [*self.model.parameters(), *self.loss_parameters()]

    def named_loss_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the loss does not share with the model, by their names in it."""
        of_loss = {} if self.loss is None else dict(self.loss.named_parameters())
        known = set(map(id, self.model.parameters())) if of_loss else ()
        return {
            name: parameter for name, parameter in of_loss.items() if id(parameter) not in known
        }

    def loss_parameters(self) -> list[nn.Parameter]:
        """The parameters that the loss does not share with the model."""
        return list(self.named_loss_parameters().values())

    def loss_buffers(self) -> list[Tensor]:
        """The buffers that the loss does not share with the model."""
        if self.loss is None:
            return []
        known = set(map(id, self.model.buffers()))
        return [buffer for buffer in self.loss.buffers() if id(buffer) not in known]

    def buffers(self) -> list[Tensor]:
        """All buffers, each once."""
        return [*self.model.buffers(), *self.loss_buffers()]

    def shared_with_model(self) -> set[str]:
        """The names in the state dict of the loss whose values are the model's."""
        if self.loss is None:
            return set()
        values = self.loss.state_dict(keep_vars=True)
        of_model = chain(self.model.parameters(), self.model.buffers()) if values else ()
        known = set(map(id, of_model))
        return {name for name, value in values.items() if id(value) in known}
