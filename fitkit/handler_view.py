"""HandlerView: a handler as callbacks and readers see it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit import snapshot
from fitkit.callbacks.history import History
from fitkit.checkpointing import discovery
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.meeting import MeetingQueue
from fitkit.checkpointing.plain import Place, to_plain
from fitkit.checkpointing.save_queue import SaveQueue
from fitkit.checkpointing.saver import Saver
from fitkit.core.callback_list import CallbackList, Event
from fitkit.core.devices import on_host
from fitkit.core.errors import ConfigurationError
from fitkit.core.fetch_clock import FetchClock
from fitkit.core.logs import EMPTY_LOGS
from fitkit.core.state import FitState, Phase
from fitkit.core.tree import map_tensors
from fitkit.generative_parts import GenerativeParts
from fitkit.parts import Parts
from fitkit.runtime.averaging import WeightAverage
from fitkit.runtime.parallel import Parallel
from fitkit.runtime.pieces import fitted_all
from fitkit.runtime.rng import draw_seed
from fitkit.runtime.world import World
from fitkit.unfinished import Unfinished


class HandlerView:
    """The part of a handler that a run reads and moves; the verbs are ``NNHandler``'s.

    Args:
        parts: the model and what is set around it.
        world: the processes of the run.
        parallel: how they train the model.
        logger: where log lines go.
        seed: the seed that was given.
        model_code: the source of the model's class, if it is kept.
    """

    def __init__(
        self,
        parts: Parts,
        world: World,
        parallel: Parallel,
        logger: logging.Logger,
        seed: int | None,
        model_code: str | None,
    ) -> None:
        self.parts = parts
        self.generative = GenerativeParts()
        self._world = world
        self._parallel = parallel
        self._logger = logger
        self._seed, self._data_seed = seed, seed
        self._model_code = model_code
        self._callbacks = CallbackList()
        self._history = History()
        self._history.name = "history"  # its state has a key of its own in a checkpoint
        self._callbacks.add(self._history)
        self._callbacks.adopt(self._history)
        self._state = FitState(vars(self.module))
        self._ema: WeightAverage | None = None
        writing: dict[str, Any] = {
            "take_snapshot": lambda place: snapshot.take(self, parallel.locally(place)),
            "take_weights": self._scored_weights,
            "is_current": lambda path: discovery.is_at(path, self._state.place()),
            "announce": self._announce_save,
            "key_of": self._callbacks.key_of,
        }
        self._saves = self._queue(writing)
        self.unfinished = Unfinished()
        self.calls_made = 0
        self.gradient_accumulation_steps = 1

    def _queue(self, writing: dict[str, Any]) -> SaveQueue:
        world, parallel = self._world, self._parallel
        if world.size == 1:
            return SaveQueue(**writing)
        writing |= {
            "savers": self._savers,
            "contributions": self.contributions,
            "is_non_finite": lambda: self._state.stopped_non_finite,
        }
        if not parallel.is_sharded:
            return MeetingQueue(world, **writing)
        from fitkit.checkpointing.sharded_queue import ShardedQueue  # a second of imports

        return ShardedQueue(world, parallel.beside, **writing)

    # ---- what callbacks use ---------------------------------------------------------------------

    def get_state_dict(self) -> dict[str, Any]:
        """The whole state, as ``save`` writes it; tensors are copies.

        In the middle of an epoch every process has to call it.
        """
        with self.contributions():
            return snapshot.take(self, self._parallel.locally(copied))

    def log(self, name: str, value: Any) -> None:
        """Contribute a value to the logs of the epoch; ``Callback.log`` calls it.

        Raises:
            ConfigurationError: the name is taken by the loss or a metric.
        """
        values = {"loss", *self.parts.metrics}
        taken = {
            "lr",
            "epoch",
            *values,
            *(f"val_{value}" for value in values),
            *self._state.epoch_logs,
        }
        if not isinstance(name, str) or not name or name in taken:
            raise ConfigurationError(
                f"a callback cannot log {name!r}: choose a non-empty name that is not logged "
                f"already."
            )
        self._state.contributed[name] = value.detach() if isinstance(value, Tensor) else value

    def running_logs(self) -> dict[str, float]:
        """The means of the epoch's training batches so far; reading them waits for the device."""
        run = self.unfinished.run
        return {} if run is None else run.train.meters.running()

    def time_fetching(self) -> FetchClock:
        """A clock that runs from the next pass over the training data on; one for all who ask."""
        run = self.unfinished.run
        if run is None:
            return FetchClock()
        if run.train.clock is None:
            run.train.clock = FetchClock()
        return run.train.clock

    @property
    def saves(self) -> SaveQueue:
        """What savers have asked for, on its way to files."""
        return self._saves

    def _savers(self) -> list[Saver]:
        return [callback for callback in self._callbacks if isinstance(callback, Saver)]

    @contextmanager
    def contributions(self) -> Iterator[None]:
        """Inside ``with`` a snapshot on the main process holds what the others know of an epoch."""
        run = self.unfinished.run
        if run is None or run.state.phase is Phase.BEGIN or self._world.size == 1:
            yield
            return
        own = run.of_this_process()
        if self._parallel.is_sharded:  # every process saves its part of the one window
            del own["window"]
        parts = self._world.gather(map_tensors(Tensor.cpu, own))
        run.others = [] if parts is None else parts[1:]
        try:
            yield
        finally:
            run.others = []

    def wait_for_saves(self) -> None:
        """Wait until every save that is under way behind training is durable.

        Raises:
            SaveError: one could not be written, and its saver has ``on_error="raise"``.
        """
        self._saves.wait()

    def _announce_save(self, path: Path) -> None:
        self._logger.info("saved %s", path)
        self._callbacks.fire(Event.CHECKPOINT_SAVED, str(path), EMPTY_LOGS)

    def start_averaging(self, decay: float) -> None:
        """Average the weights from now on, or go on with what was averaged, with this decay."""
        if self._ema is None:
            self._ema = WeightAverage(self.module, decay)
        else:
            self._ema.set_decay(decay)

    def drop_average(self) -> None:
        """Forget the averaged weights."""
        self._ema = None

    def training_weights(self) -> dict[str, Any]:
        """The model's own weights, also while averaged ones are swapped in; live tensors."""
        if self._ema is None:
            return self.module.state_dict()
        return self._ema.own_weights(self.module)

    def scored_weights(self) -> dict[str, Any]:
        """The weights that evaluation uses (the averaged ones if there are any), on the host."""
        return self._scored_weights(on_host)

    def _scored_weights(self, place: Place) -> dict[str, Any]:
        weights = self.module.state_dict()
        if self._ema is not None:
            weights.update(self._ema.weights())
        plain: dict[str, Any] = to_plain(weights, place=self._parallel.locally(place))
        return plain

    def restore_weights(self, weights: Mapping[str, Any]) -> None:
        """Make ``weights`` the model's, and the averaged ones too."""
        self.load_weights(weights)
        if self._ema is not None:
            self._ema.load_weights(dict(weights))

    def load_weights(self, weights: Mapping[str, Any], *, strict: bool = True) -> None:
        """Make ``weights`` the model's; whole ones are spread where the model's are."""
        weights = fitted_all(weights, self.module.state_dict())
        self.module.load_state_dict(weights, strict=strict)

    def count_call(self, *, new: bool) -> None:
        """A call of ``fit`` begins: a new one, or one that a checkpoint goes on with."""
        if new:
            self._state.begin_call()
        self.calls_made += 1

    def remember(self) -> Callable[[], None]:
        """A function that puts back the parts that this handler has now, as they will be then."""
        before = dict(vars(self))
        return lambda: vars(self).update(before)

    def adopt_seeds(self, seed: int | None, data_seed: int | None) -> None:
        """Go on with the seeds of a checkpoint, or of an argument."""
        self._seed, self._data_seed = seed, data_seed
        self.generative.draws = 0

    # ---- read-only ------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model as it is called, with its wrappers."""
        return self.parts.wrapped or self.parts.model

    @property
    def module(self) -> nn.Module:
        """The model without wrappers."""
        return self.parts.module

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, once set."""
        return self.parts.optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        """The scheduler, once it and the optimizer are set."""
        return self.parts.scheduler

    @property
    def callbacks(self) -> CallbackList:
        """The callbacks, in the order in which they run."""
        return self._callbacks

    @property
    def auto_saver(self) -> AutoSaver | None:
        """The saver that ``auto_save`` attached."""
        return next((c for c in self._callbacks if isinstance(c, AutoSaver)), None)

    @property
    def history(self) -> History:
        """Every epoch of the run."""
        return self._history

    @property
    def state(self) -> FitState:
        """Where the run stands."""
        return self._state

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parts.device

    @property
    def world(self) -> Any:
        """The processes of the run."""
        return self._world

    @property
    def parallel(self) -> Parallel:
        """How the processes train the model."""
        return self._parallel

    @property
    def logger(self) -> logging.Logger:
        """The handler's own logger."""
        return self._logger

    @property
    def ema(self) -> WeightAverage | None:
        """The averaged weights, if there are any."""
        return self._ema

    @property
    def model_code(self) -> str | None:
        """The source of the model's class, if it was kept."""
        return self._model_code

    @property
    def seed(self) -> int | None:
        """The seed that was given."""
        return self._seed

    @property
    def data_seed(self) -> int:
        """The seed of order and augmentation; drawn at first need if none was given."""
        if self._data_seed is None:
            self._data_seed = draw_seed()
        return self._data_seed

    @property
    def train_losses(self) -> list[float]:
        """The training loss of each epoch."""
        return self._history.train_losses

    @property
    def val_losses(self) -> list[float]:
        """The validation loss of each epoch that validated."""
        return self._history.val_losses

    @property
    def train_metrics_history(self) -> dict[str, list[float]]:
        """Each metric over the epochs, in training."""
        return self._history.train_metrics_history

    @property
    def val_metrics_history(self) -> dict[str, list[float]]:
        """Each metric over the epochs that validated, in validation."""
        return self._history.val_metrics_history

    @property
    def stop_training(self) -> bool:
        """Whether training is to end after the current batch; may be set by anyone."""
        return self._state.stopping

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        if stop:
            self._state.stop("stop_training was set")
        else:
            self._state.clear_stop()


def copied(tensor: Tensor) -> Tensor:
    """A copy that training does not change."""
    return tensor.detach().clone()
