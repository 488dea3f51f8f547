"""SchedulerStart: a scheduler as it was built, to begin its schedule again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.handler.group_options import Options, options_of, put_options


@dataclass(frozen=True)
class SchedulerStart:
    """A scheduler right after it was built.

    Attributes:
        options: options of the optimizer's groups, of which building it set some.
        state: its encoded state, which follows from its arguments; ``None``: it cannot be stored.
    """

    options: list[Options]
    state: dict[str, Any] | None

    @classmethod
    def of(cls, scheduler: Any, optimizer: Optimizer) -> SchedulerStart:
        """The start of a scheduler that was just built."""
        try:
            state = encode(scheduler.state_dict(), tensor_map=Tensor.clone)
        except CheckpointError:  # saving the scheduler says so
            state = None
        return cls(options_of(optimizer), state)

    def step(self, scheduler: Any, optimizer: Optimizer, num_steps: int) -> None:
        """Begin the schedule again and take ``num_steps`` steps of it.

        Each step is taken: closed forms have other last bits than a run with this schedule, and a
        million steps take two seconds.

        Raises:
            ConfigurationError: the schedule is shorter.
        """
        put_options(optimizer, self.options)
        scheduler.load_state_dict(decode(self.state))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the optimizer's steps were taken by an earlier process
            for step in range(num_steps):
                try:
                    scheduler.step()
                except Exception as error:
                    raise ConfigurationError(
                        f"{type(scheduler).__name__} cannot be brought to step {num_steps}, where "
                        f"the run stands, but only to {step} ({error}): give it the steps of the "
                        f"whole run, those before the restart included."
                    ) from error


def are_schedulers_of(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> bool:
    """Whether all schedulers among the arguments of a composed one are of ``optimizer``."""
    return all(one.optimizer is optimizer for one in _schedulers(kwargs.values()))


def has_schedulers(kwargs: Mapping[str, Any]) -> bool:
    """Whether these are the arguments of a composed scheduler."""
    return any(True for _ in _schedulers(kwargs.values()))


def _schedulers(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, LRScheduler):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _schedulers(value)
