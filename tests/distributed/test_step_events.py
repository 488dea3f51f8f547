"""Events that all ranks have to reach together."""

from __future__ import annotations

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.step_events import StepEvent, reach_together
from fitkit.distributed.world import World


class Three(World):
    """This rank, one that does the same, and one that is at ``event``."""

    size = 3

    def __init__(self, event):
        self.event = event
        self.sizes = set()

    def sum(self, sums):
        self.sizes.add(len(sums))
        theirs = sums.clone()
        theirs[: len(StepEvent)] = 0
        theirs[self.event] = 1
        return 2 * sums + theirs


def test_values_of_ranks_at_the_same_event_are_added():
    for event in StepEvent:
        world = Three(event)
        assert reach_together(world, event, 1.0, 2.5) == [3.0, 7.5, 0.0, 0.0, 0.0]
        assert len(world.sizes) == 1


def test_others_are_told_what_each_did():
    done = "of 3 ranks, 2 called backward and 1 ended the step"
    with pytest.raises(ConfigurationError, match=done):
        reach_together(Three(StepEvent.END), StepEvent.BACKWARD, 1.0)
    with pytest.raises(ConfigurationError, match="1 called backward and 2 ended the step"):
        reach_together(Three(StepEvent.BACKWARD), StepEvent.END)
