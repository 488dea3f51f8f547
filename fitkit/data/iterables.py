"""Sources for iterables of batches, which are replayed to a position or restore it themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from fitkit.core.errors import CheckpointError, DataError
from fitkit.core.types import Share
from fitkit.data.generator_state import UserGenerators, announce_epoch
from fitkit.data.loader_workers import start_iterator
from fitkit.data.split_batch import as_fields, collates_fields
from fitkit.runtime.rng import IsolatedStreams, derive_seed


class IterableBatches:
    """What both sources share. A restored state is kept for the next ``iterate``.

    The iterable draws from streams of its own, seeded for each pass.

    Attributes:
        may_lack: batches before the position of a checkpoint that may not be there, as in the last
            round of several ranks.
        is_single_pass: ``iterate`` has found an iterator, which can be consumed only once.
    """

    is_single_pass = False

    def __init__(self, batches: Any, seed: int) -> None:
        self._batches = batches
        self._seed = seed
        self._generators = UserGenerators(batches)
        self.may_lack = 0
        self._open_epoch: int | None = None
        self._restored: dict[str, Any] | None = None

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch`` from batch ``start`` on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The position, and the states of the generators."""
        raise NotImplementedError

    def as_part(self) -> IterableSource:
        """A source of the same iterable, as the part of one of several ranks."""
        return IterableSource(self._batches, self._seed, may_end_early=True)

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, if the iterable has a length."""
        try:
            return len(self._batches)
        except TypeError:
            return None

    def _begin_pass(self, epoch: int) -> IsolatedStreams:
        self._generators.open(epoch)
        announce_epoch(self._batches, epoch)
        return IsolatedStreams(derive_seed(self._seed, "iterable", epoch))

    def _batches_of(self, streams: IsolatedStreams, iterator: Iterator[Any]) -> Iterator[Any]:
        draws = type(self._batches) not in (list, tuple)
        batches = draw_inside(streams, iterator) if draws else iterator
        return map(as_fields, batches) if collates_fields(self._batches) else batches

    def _end_pass(self) -> None:
        self._open_epoch = None
        self._generators.close()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state for the next ``iterate``."""
        self._restored = state_dict or None
        self._generators.load_state_dict(state_dict.get("generators", {}))


class IterableSource(IterableBatches):
    """An iterable of batches without a state of its own, which is replayed to a position.

    It is iterated once per pass; an iterator, which can be consumed only once, continues.

    Args:
        batches: the iterable.
        seed: seed of the streams that it draws from.
        may_end_early: a pass may end before the position of a checkpoint, as on one of several
            ranks, each of which has another number of batches.

    Attributes:
        skipped_last: the last batch that was skipped, if it may end early.
    """

    def __init__(self, batches: Any, seed: int, *, may_end_early: bool = False) -> None:
        super().__init__(batches, seed)
        self._may_end_early = may_end_early
        self.skipped_last: list[Any] = []
        self.share: Share | None = None
        self._taken = 0
        self._taken_at_start = 0

    @property
    def num_batches(self) -> int | None:
        """As above; a stream that is a part may have the length of the whole."""
        is_certain = not self._may_end_early or isinstance(self._batches, (list, tuple))
        return super().num_batches if is_certain else None

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch`` from batch ``start`` on, or raise ``DataError``."""
        streams = self._begin_pass(epoch)
        with streams:
            iterator = start_iterator(self._batches)
        restored, self._restored = self._restored, None
        self.is_single_pass = iterator is self._batches
        count_skipped = self._skip_single_pass if self.is_single_pass else self._skip_replayed
        skipped = count_skipped(restored, epoch, start)
        self._open_epoch = epoch
        if skipped:
            warnings.warn(
                f"{type(self._batches).__name__} cannot seek: {skipped} batches are read again and "
                f"discarded to reach the position of the checkpoint. A map-style Dataset, or a "
                f"loader with state_dict and load_state_dict, avoids that.",
                stacklevel=2,
            )
        for batch in self._batches_of(streams, iterator):
            self._taken += 1
            if skipped:
                skipped -= 1
                self.skipped_last = [batch] if self._may_end_early else []
            else:
                yield batch
        if skipped > self.may_lack and not self._may_end_early:
            raise DataError(
                f"{type(self._batches).__name__} ended {skipped} batches before the position of "
                f"the checkpoint: pass the data of the interrupted run, from its beginning."
            )
        self._end_pass()

    def _skip_replayed(self, restored: dict[str, Any] | None, epoch: int, start: int) -> int:
        """Restore the counts of the uninterrupted run; batches before ``start`` are replayed."""
        if restored is not None:
            is_same_pass = restored["epoch"] == epoch
            self._taken = restored["taken_at_start" if is_same_pass else "taken"]
        self._taken_at_start = self._taken
        return start

    def _skip_single_pass(self, restored: dict[str, Any] | None, epoch: int, start: int) -> int:
        """The number of batches from an iterator's position to that of the checkpoint."""
        position = self._taken
        if restored is not None:
            is_same_pass = restored["epoch"] == epoch
            position = restored["taken_at_start"] + start if is_same_pass else restored["taken"]
        if position < self._taken:
            raise DataError(
                f"{type(self._batches).__name__} can be read only once and is at batch "
                f"{self._taken}, after position {position} of the checkpoint: pass a new one."
            )
        self._taken_at_start = position - start
        return position - self._taken

    def state_dict(self) -> dict[str, Any]:
        """The number of batches taken over all passes, and the states of the generators."""
        if self._restored is not None:
            return self._restored
        return {
            "epoch": self._open_epoch,
            "taken_at_start": self._taken_at_start,
            "taken": self._taken,
            "generators": self._generators.state_dict(),
        }


class StatefulSource(IterableBatches):
    """A loader that saves its own position (``state_dict`` and ``load_state_dict``).

    An interrupted pass continues inside it. A new pass begins as it did after the earlier one: the
    state at the end of that pass is loaded, and the loader is iterated anew.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        super().__init__(batches, seed)
        self._streams = IsolatedStreams(seed)
        self._has_begun = False

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch``; the position in it is in the loader's state."""
        restored, self._restored = self._restored, None
        self._streams = self._begin_pass(epoch)
        if restored is not None and restored["epoch"] == epoch:
            with self._streams:
                iterator = self._restored_iterator(restored["loader"])
            self._streams.load_state_dict(restored["streams"])
            self._generators.restore_now(restored["generators"])
        else:
            if restored is not None and restored["loader"] is not None:
                self._restore_previous_pass(restored)
            with self._streams:
                iterator = start_iterator(self._batches)
        self.is_single_pass = iterator is self._batches
        self._open_epoch, self._has_begun = epoch, True
        yield from self._batches_of(self._streams, iterator)
        self._end_pass()

    def _restore_previous_pass(self, restored: dict[str, Any]) -> None:
        was_interrupted = restored["epoch"] is not None
        with IsolatedStreams(0):
            # torchdata's loaders apply a loaded state only when they are iterated
            if was_interrupted or isinstance(self._batches, DataLoader):
                self._restored_iterator(restored["loader"])
            else:
                self._batches.load_state_dict(restored["loader"])
        self._generators.restore_now(restored["generators"])

    def _restored_iterator(self, state: dict[str, Any]) -> Iterator[Any]:
        try:
            self._batches.load_state_dict(state)
            return start_iterator(self._batches)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{type(self._batches).__name__} rejects the position in the checkpoint "
                f"({type(error).__name__}: {error}). Build it as in the interrupted run, with the "
                f"same data and the same num_workers."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """The states of the loader, and of the streams and generators that it draws from."""
        if self._restored is not None:
            return self._restored
        return {
            "epoch": self._open_epoch,
            # state_dict of some loaders begins their first pass
            "loader": self._batches.state_dict() if self._has_begun else None,
            "streams": self._streams.state_dict(),
            "generators": self._generators.state_dict(),
        }


_END = object()


def draw_inside(streams: IsolatedStreams, iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield the items of ``iterator``, which draws from ``streams``."""
    while True:
        with streams:
            item = next(iterator, _END)
        if item is _END:
            return
        yield item
