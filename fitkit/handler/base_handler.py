"""BaseHandler: the attributes of a handler. NNHandler adds the verbs."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.callbacks.history import History
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.checkpointing.storage.run_record import RunIdentity
from fitkit.core.callback_list import CallbackList
from fitkit.core.state import FitState
from fitkit.core.validation_sets import UNNAMED, logged_names
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World
from fitkit.handler.fit_session import FitSession
from fitkit.handler.model_weights import ModelWeights
from fitkit.handler.parts import Parts
from fitkit.runtime.rng import Seeds
from fitkit.runtime.weight_ema import WeightEMA


class BaseHandler:
    """The model's parts, the state of the run, callbacks and history.

    It has no verbs such as ``fit``, so functions that work on a handler can import it.

    Attributes:
        parts: the model and its other components.
        weights: the model's weights, and their average.
        world: the ranks of the run.
        parallel: how the ranks train the model.
        logger: the handler's logger.
        seeds: the seed that the user gave, and those that follow from it.
        model_code: the source of the model's class, if it is saved.
        session: the run in progress, and restored state that waits for its owner.
        saves: the queue of save requests, made by ``NNHandler``.
        run_identity: the run that its files belong to.
        gradient_accumulation_steps: batches whose gradients make one optimizer step.
    """

    saves: SaveQueue

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
        self.weights = ModelWeights(parts, parallel)
        self.parallel = parallel
        self.world = world
        self.logger = logger
        self.seeds = Seeds(seed)
        self.model_code = model_code
        self._callbacks = CallbackList()
        self._history = History()
        self._history.name = "history"  # its state has a key of its own in a checkpoint
        self._callbacks.add(self._history)
        self._callbacks.adopt(self._history)
        self._state = FitState(self.module)
        self._state.unshared = None if world.size == 1 else {}
        self.session = FitSession(parallel.data_world(world), parallel)
        self.run_identity = RunIdentity()
        self.gradient_accumulation_steps = 1

    def log(self, name: str, value: Any) -> None:
        """Add a value to the logs of the epoch; ``Callback.log`` calls it.

        Raises:
            ConfigurationError: the name is taken by the loss or a metric.
        """
        run, values = self.session.run, ("loss", *self.parts.metrics)
        sets = (run.validation if run is not None else ()) or (UNNAMED,)
        self._state.log(name, value, reserved=[*values, *logged_names(sets, values)])

    def running_logs(self) -> dict[str, float]:
        """The means over the epoch's training batches so far; a call waits for the device."""
        run = self.session.run
        return {} if run is None else run.train.meters.running()

    def wait_for_saves(self) -> None:
        """Wait until every asynchronous save is durable.

        Raises:
            SaveError: a file could not be written, and its saver has ``on_error="raise"``.
        """
        self.saves.wait()

    # ---- read-only ------------------------------------------------------------------------------

    @property
    def data_world(self) -> World:
        """Those of the ranks that share out the batches: all, without tensor parallelism."""
        return self.parallel.data_world(self.world)

    @property
    def model(self) -> nn.Module:
        """The model as it is called: compiled, or ``module`` itself."""
        return self.parts.model

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
        """Counters of the run, and whether it is to stop."""
        return self._state

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parts.device

    @property
    def ema(self) -> WeightEMA | None:
        """The averaged weights, if there are any."""
        return self.weights.ema

    @property
    def seed(self) -> int | None:
        """The seed that the user gave."""
        return self.seeds.given

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
        """Whether training ends after the current batch; may be set at any time."""
        return self._state.stopping

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        if stop:
            self._state.stop("stop_training was set")
        else:
            self._state.clear_stop()
