"""BatchLogs: the logs of ``on_train_batch_end`` and ``on_test_batch_end``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.event import Event
from fitkit.core.logs import Deferred, Logs
from fitkit.metrics.batch_sums import BatchSums
from fitkit.metrics.meters import Meters
from fitkit.metrics.ranks import Ranks


class BatchLogs:
    """The logs of a batch of a single rank: its values."""

    def of(self, event: Event, number: int, meters: Meters, values: Mapping[str, Any]) -> Logs:
        """The logs of a batch.

        Args:
            event: the event whose hooks get them.
            number: the batch, from 1; in training that of the whole run.
            meters: the meters that the batch was added to.
            values: what they returned for it.
        """
        return Logs(values)


class BatchLogsOfRanks(BatchLogs):
    """The logs of a batch over several ranks, as means over the epoch are, if they are read.

    Args:
        ranks: the ranks.
        device: where the values are.
        intervals: every how many batches callbacks of any rank read the logs, by event.
        names_vary: whether a rank may have values of other names in another batch.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        intervals: Mapping[Event, Iterable[int]],
        *,
        names_vary: bool,
    ) -> None:
        self._ranks, self._device, self._names_vary = ranks, device, names_vary
        self._intervals = {event: tuple(of_event) for event, of_event in intervals.items()}
        self._sums: dict[Meters, BatchSums] = {}

    def of(self, event: Event, number: int, meters: Meters, values: Mapping[str, Any]) -> Logs:
        """As in ``BatchLogs``; all ranks call it for the same batches."""
        if not any(number % interval == 0 for interval in self._intervals.get(event, ())):
            return Logs(own=values)
        if meters not in self._sums:
            self._sums[meters] = BatchSums(self._ranks, self._device, names_vary=self._names_vary)
        sums = self._sums[meters].over_ranks(meters.batch_sums(values))
        named = {name: Deferred(_value_of, meters, name, part) for name, part in sums.items()}
        return Logs(named, own=values)


def _value_of(meters: Meters, name: str, sums: Tensor) -> Any:
    accumulator = meters.accumulator_of(name)
    return sums[0] / sums[1] if accumulator is None else accumulator.metric.compute(sums)
