"""Whatever else can be iterated: replayed to its position, or put there through its own state."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from fitkit.core.errors import CheckpointError, DataError
from fitkit.data.generators import UserGenerators, announce_epoch
from fitkit.runtime.rng import IsolatedStreams, derive_seed


class IterableSource:
    """An iterable of batches without a state of its own.

    It is iterated once per pass; an iterator that can be consumed only once goes on where it was.
    What it draws comes from streams of its own, so that a replay draws the same.

    Args:
        batches: the iterable.
        seed: the seed of those streams.
    """

    def __init__(self, batches: Iterable[Any], seed: int) -> None:
        self._batches = batches
        self._seed = seed
        self._generators = UserGenerators(batches)
        self._open_epoch: int | None = None
        self._taken = 0
        self._taken_at_start = 0
        self._loaded: dict[str, Any] | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, if the iterable has a length."""
        return _length(self._batches)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch`` from batch ``start`` on, those before it replayed.

        Raises:
            DataError: the data ends before ``start``, or cannot be brought back to it.
        """
        self._generators.open(epoch)
        announce_epoch(self._batches, epoch)
        streams = IsolatedStreams(derive_seed(self._seed, "iterable", epoch))
        with streams:
            iterator = iter(self._batches)
        loaded, self._loaded = self._loaded, None
        is_single_pass = iterator is self._batches
        if is_single_pass:
            skipped = self._still_to_take(loaded, epoch, start)
        else:
            skipped = self._begin_pass(loaded, epoch, start)
        self._open_epoch = epoch
        if skipped:
            self._warn_of_replay(skipped)
        for batch in drawn_in(streams, iterator):
            self._taken += 1
            if skipped:
                skipped -= 1
            else:
                yield batch
        if skipped:
            raise DataError(
                f"{type(self._batches).__name__} ended {skipped} batches before the position of "
                f"the checkpoint: pass the data of the interrupted run, from its beginning."
            )
        self._open_epoch = None
        self._generators.close()

    def _begin_pass(self, loaded: dict[str, Any] | None, epoch: int, start: int) -> int:
        """Count as the uninterrupted run does; the batches before ``start`` are taken again."""
        if loaded is not None:
            inside = loaded["epoch"] == epoch
            self._taken = loaded["taken_at_start" if inside else "taken"]
        self._taken_at_start = self._taken
        return start

    def _still_to_take(self, loaded: dict[str, Any] | None, epoch: int, start: int) -> int:
        """How far an iterator of a single pass is behind its position."""
        place = self._taken
        if loaded is not None:
            inside = loaded["epoch"] == epoch
            place = loaded["taken_at_start"] + start if inside else loaded["taken"]
        if place < self._taken:
            raise DataError(
                f"{type(self._batches).__name__} can be read only once and stands at batch "
                f"{self._taken}, after the checkpoint's position {place}: pass a new one."
            )
        self._taken_at_start = place - start
        return place - self._taken

    def _warn_of_replay(self, skipped: int) -> None:
        warnings.warn(
            f"{type(self._batches).__name__} cannot seek: {skipped} batches are read again and "
            f"thrown away to reach the position of the checkpoint. A map-style data set, or a "
            f"loader with state_dict and load_state_dict, costs nothing here.",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken over all passes, and the loader's generators."""
        if self._loaded is not None:
            return self._loaded
        return {
            "epoch": self._open_epoch,
            "taken_at_start": self._taken_at_start,
            "taken": self._taken,
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a position for the next ``iterate``."""
        self._loaded = state_dict or None
        self._generators.load_state_dict(state_dict.get("generators", {}))


class StatefulSource:
    """A loader that can save its own position (``state_dict`` and ``load_state_dict``).

    A pass that a checkpoint cut goes on inside it. A pass that follows begins as it did after the
    earlier one: a loader that was left inside that one is put there, and then iterated anew.

    Args:
        loader: the loader.
        seed: the seed of the streams that it draws from.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader = loader
        self._seed = seed
        self._generators = UserGenerators(loader)
        self._streams = IsolatedStreams(seed)
        self._open_epoch: int | None = None
        self._has_begun = False
        self._loaded: dict[str, Any] | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, if the loader has a length."""
        return _length(self._loader)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch``; where it was cut is in the loader's own state.

        Raises:
            CheckpointError: the loader refuses the state that it was given.
        """
        loaded, self._loaded = self._loaded, None
        self._generators.open(epoch)
        announce_epoch(self._loader, epoch)
        self._streams = IsolatedStreams(derive_seed(self._seed, "iterable", epoch))
        if loaded is not None and loaded["epoch"] == epoch:
            iterator = self._iterator_inside(loaded)
        else:
            if loaded is not None and loaded["loader"] is not None:
                self._come_from(loaded)
            with self._streams:
                iterator = iter(self._loader)
        self._open_epoch, self._has_begun = epoch, True
        yield from drawn_in(self._streams, iterator)
        self._open_epoch = None
        self._generators.close()

    def _iterator_inside(self, loaded: dict[str, Any]) -> Iterator[Any]:
        with self._streams:
            iterator = self._restored_iterator(loaded["loader"])
        self._streams.load_state_dict(loaded["streams"])
        self._generators.put_now(loaded["generators"])
        return iterator

    def _come_from(self, loaded: dict[str, Any]) -> None:
        """Stand where an earlier pass left the loader."""
        was_left_inside = loaded["epoch"] is not None
        with IsolatedStreams(0):
            # torchdata's loaders take their state over only when they are iterated
            if was_left_inside or isinstance(self._loader, DataLoader):
                self._restored_iterator(loaded["loader"])
            else:
                self._loader.load_state_dict(loaded["loader"])
        self._generators.put_now(loaded["generators"])

    def _restored_iterator(self, state: dict[str, Any]) -> Iterator[Any]:
        try:
            self._loader.load_state_dict(state)
            return iter(self._loader)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{type(self._loader).__name__} refuses the position in the checkpoint "
                f"({type(error).__name__}: {error}). Build it as in the interrupted run, with the "
                f"same data and the same num_workers."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """The loader's own state, and that of the streams and generators it draws from."""
        if self._loaded is not None:
            return self._loaded
        return {
            "epoch": self._open_epoch,
            # asking some loaders for their state before their first pass begins that pass
            "loader": self._loader.state_dict() if self._has_begun else None,
            "streams": self._streams.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state for the next ``iterate``."""
        self._loaded = state_dict or None
        self._generators.load_state_dict(state_dict.get("generators", {}))


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def drawn_in(streams: IsolatedStreams, iterator: Iterator[Any]) -> Iterator[Any]:
    """What ``iterator`` gives, drawn from ``streams``."""
    while True:
        with streams:
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


_END = object()
