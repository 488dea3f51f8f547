"""Events inside a custom step that all ranks have to reach together."""

from __future__ import annotations

from enum import IntEnum

import torch

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.world import World


class StepEvent(IntEnum):
    """What ranks do together in a custom step."""

    BACKWARD = 0
    CLOSURE = 1
    COMPARE = 2
    END = 3


_DONE = {
    StepEvent.BACKWARD: "called backward",
    StepEvent.CLOSURE: "called the closure of an optimizer",
    StepEvent.COMPARE: "stepped an optimizer",
    StepEvent.END: "ended the step",
}
_NUM_VALUES = 5
INSTEAD = "A rank that has nothing to learn from its batch can call backward on its loss times 0."


def reach_together(world: World, event: StepEvent, *values: float) -> list[float]:
    """The sums of up to five values over the ranks, all of which must be at the same event.

    Every event sends a message of the same size, so that no rank waits for one that is at another.

    Raises:
        ConfigurationError: on all ranks, if they are at different events.
    """
    message = [0.0] * (len(StepEvent) + _NUM_VALUES)
    message[event] = 1.0
    message[len(StepEvent) : len(StepEvent) + len(values)] = values
    sums = world.sum(torch.tensor(message, dtype=torch.float64)).tolist()
    if sums[event] != world.size:
        done = [f"{num:.0f} {_DONE[one]}" for one in StepEvent if (num := sums[one])]
        raise ConfigurationError(
            f"ranks did different things in a training step that calls backward itself: of "
            f"{world.size} ranks, {' and '.join(done)}. Call backward and step optimizers equally "
            f"often on all ranks. {INSTEAD}"
        )
    found: list[float] = sums[len(StepEvent) :]
    return found
