"""NNHandler: holds the parts and gives every verb a line or two of delegation."""

from __future__ import annotations

import datetime
import logging
import signal
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit import description, model_code, snapshot
from fitkit.batch_size_search import search_batch_size
from fitkit.callbacks.history import History
from fitkit.checkpointing import discovery, loading, saving
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.contents import load_scheduler
from fitkit.core import types
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError
from fitkit.data.batches import split_inputs
from fitkit.data.loaders import DataSpec
from fitkit.engine import evaluation
from fitkit.evaluating import evaluation_phase, evaluation_run
from fitkit.fitting import run_fit
from fitkit.generating import GenerativeHandler
from fitkit.generative_state import rebuild_generative
from fitkit.learning_rate_sweep import LearningRateSweep, sweep_learning_rates
from fitkit.metrics.metric import require_metric
from fitkit.model_summary import ModelSummary
from fitkit.options import as_options
from fitkit.parts import ParameterGroups, Parts
from fitkit.runtime.device import make_current, resolve_device
from fitkit.runtime.joining import find_world
from fitkit.runtime.logger import make_logger
from fitkit.runtime.own_device import require_own_device
from fitkit.runtime.parallel import Parallel
from fitkit.runtime.rng import seeded_streams
from fitkit.runtime.strategy import Strategy, as_strategy, make_parallel, timeout_of
from fitkit.runtime.world import World
from fitkit.shown import as_html, as_text
from fitkit.summary import summarize


class NNHandler(GenerativeHandler):
    """A model with everything it takes to train it, and the state that makes training resumable.

    Args:
        model_class: a ``torch.nn.Module`` subclass, built with ``model_kwargs``; or a ready module.
        device: where to train; ``None``: CUDA if there is any, else the CPU. It becomes torch's
            current device.
        logger_mode: ``LoggingMode`` or its value: where the handler's log lines go; ``None``: to
            the ``"fitkit"`` logger of the ``logging`` module.
        logger_filename: the file of the FILE and BOTH modes.
        logger_level: the lowest level that is logged.
        save_model_code: keep the source of the model, and what it uses, in checkpoints.
        model_type: ``ModelType`` or its value: how a batch becomes a loss.
        use_distributed: ``None``: as the launcher's environment says; ``False``: one process.
        strategy: how several processes train: ``"ddp"`` (as ``"auto"`` does), each with the whole
            model; ``"fsdp"``, each with a part of every parameter; or a ``DDP`` or ``FSDP`` object.
        seed: makes the model's initial weights and everything ``fit`` draws a function of it;
            ``None``: torch's global generator decides.
        **model_kwargs: arguments of ``model_class``.

    Raises:
        ConfigurationError: an argument cannot be used.

    >>> handler = NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    >>> handler.set_optimizer(torch.optim.SGD, lr=0.1)
    >>> handler.set_loss_fn(nn.MSELoss())
    >>> history = handler.fit((torch.randn(8, 2), torch.zeros(8, 1)), epochs=2, progress_bar=False)
    >>> sorted(history.history), history.epoch
    (['loss', 'lr'], [0, 1])
    """

    LoggingMode: ClassVar[type[types.LoggingMode]] = types.LoggingMode
    ModelType: ClassVar[type[types.ModelType]] = types.ModelType

    def __init__(
        self,
        model_class: type[nn.Module] | nn.Module,
        device: torch.device | str | None = None,
        logger_mode: types.LoggingMode | str | None = None,
        logger_filename: str = "NNHandler.log",
        logger_level: int = logging.INFO,
        save_model_code: bool = False,
        model_type: types.ModelType | str = types.ModelType.CLASSIFICATION,
        use_distributed: bool | None = None,
        seed: int | None = None,
        *,
        strategy: Strategy | Parallel | str | None = "auto",
        **model_kwargs: Any,
    ) -> None:
        mode = None if logger_mode is None else types.LoggingMode.parse(logger_mode)
        logger = make_logger(mode, logger_filename, logger_level)
        chosen = as_strategy(strategy)
        world = find_world(use_distributed, timeout=timeout_of(chosen))
        if seed is not None:
            require_count("seed", seed, minimum=0)
        kind = types.ModelType.parse(model_type)
        where = _device_of(device, world)
        parallel = make_parallel(chosen, world, where)
        # a seed given here must not disturb the program's own random streams
        with nullcontext() if seed is None else seeded_streams(seed, where):
            parts = Parts(model_class, model_kwargs, kind, where)
        code = model_code.read(parts) if save_model_code else None
        world.copy_from_main(parts.module.state_dict().values())
        parallel.shard(parts.module)
        super().__init__(parts, world, parallel, logger, seed, code)

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        """The parts, how far training has come, and the history, for a notebook."""
        return as_html(self)

    # ---- setting up -----------------------------------------------------------------------------

    def set_optimizer(
        self, cls: type[Optimizer], *, params: ParameterGroups | None = None, **kwargs: Any
    ) -> None:
        """Optimize the model with ``cls(parameters, **kwargs)``.

        Args:
            cls: an optimizer class.
            params: a function from the module to parameters or parameter groups; default: all.
            **kwargs: arguments of the class, such as ``lr``.
        """
        self.parts.set_optimizer(cls, kwargs, params)
        self._give_scheduler_its_state()

    def set_scheduler(
        self,
        cls: type[LRScheduler],
        *,
        interval: str = "epoch",
        monitor: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Schedule the learning rate with ``cls(optimizer, **kwargs)``.

        Args:
            cls: a class of ``torch.optim.lr_scheduler``.
            interval: step it after each ``"epoch"``, or each optimizer ``"step"``.
            monitor: what ``ReduceLROnPlateau`` watches; default: ``val_loss``, or ``loss`` where
                there is no validation.
            **kwargs: arguments of the class without the optimizer.
        """
        before = None if self.optimizer is None else self.optimizer.state_dict()
        self.parts.set_scheduler(cls, kwargs, interval, monitor)
        self._give_scheduler_its_state(before)

    def _give_scheduler_its_state(self, optimizer_state: dict[str, Any] | None = None) -> None:
        if self.scheduler is None or self.unfinished.scheduler is None:
            return
        load_scheduler(self.scheduler, self.unfinished.scheduler)
        self.unfinished.scheduler = None
        if self.optimizer is not None and optimizer_state is not None:
            # a scheduler begins by setting its first learning rate
            self.optimizer.load_state_dict(optimizer_state)

    def set_loss_fn(
        self, fn: Callable[..., Any], pass_epoch_to_loss: bool = False, **kwargs: Any
    ) -> None:
        """Use ``fn(outputs, targets, **kwargs)``, a scalar mean over the batch, as the loss.

        Args:
            fn: a function or module; a class is built with ``kwargs`` instead. Score-based models
                call it as ``fn(model, *inputs)``.
            pass_epoch_to_loss: also pass ``epoch=``, from 0.
            **kwargs: further arguments of each call.
        """
        self.parts.set_loss(fn, pass_epoch_to_loss, kwargs)

    def set_train_loader(self, dataset: Any, **loader_kwargs: Any) -> None:
        """Train on ``dataset`` (anything that ``fit`` takes) where ``fit`` is given no data.

        Args:
            dataset: a data set, arrays, a DataLoader or an iterable of batches.
            **loader_kwargs: ``batch_size`` (32), ``shuffle`` (yes), or ``global_batch_size``, and
                other arguments of ``torch.utils.data.DataLoader``.
        """
        self.parts.train_data = self._data_spec(dataset, loader_kwargs)

    def set_val_loader(self, dataset: Any, **loader_kwargs: Any) -> None:
        """Validate on ``dataset``; as ``set_train_loader``, but in order unless told otherwise."""
        self.parts.validation_data = self._data_spec(dataset, loader_kwargs)

    def _data_spec(self, dataset: Any, loader_kwargs: dict[str, Any]) -> DataSpec:
        batch_size = loader_kwargs.pop("batch_size", None)
        whole = loader_kwargs.pop("global_batch_size", None)
        require_count("global_batch_size", whole, optional=True)
        if batch_size is not None and whole is not None:
            raise ConfigurationError("batch_size and global_batch_size were both given: pass one.")
        shuffle = loader_kwargs.pop("shuffle", None)
        return DataSpec(dataset, batch_size, shuffle, loader_kwargs, whole)

    def add_metric(self, name: str, metric: Any) -> None:
        """Log ``metric`` as ``name``, and as ``val_name`` in validation.

        Args:
            name: its column.
            metric: a function ``(outputs, targets) -> mean over the batch``, a ``fitkit.Metric``,
                or a torchmetrics ``Metric``.
        """
        self.parts.metrics[name] = require_metric(name, metric, taken=self.parts.metrics)

    def add_callback(self, callback: Callback) -> None:
        """Attach a callback for all calls to come."""
        self._callbacks.add(callback)

    def remove_callback(self, callback: Callback) -> None:
        """Detach a callback."""
        self._callbacks.remove(callback)

    def auto_save(
        self,
        interval: int | None,
        save_path: str | Path = ".",
        name: str = "model_epoch{epoch:02d}",
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        """Save the whole handler every ``interval`` epochs; a second call replaces the first.

        Args:
            interval: epochs between saves; ``-1``: only at the last epoch; ``None`` or 0: never.
            save_path: the folder.
            name: file name with placeholders, as in ``AutoSaver``.
            overwrite: keep only the newest file.
            **options: ``retention``, ``on_error``, ``background`` and ``max_overhead`` of
                ``AutoSaver``.
        """
        saver = AutoSaver(interval, save_path, name, overwrite, **options)
        if self.auto_saver is not None:
            self._callbacks.remove(self.auto_saver)
        if interval:
            self._callbacks.add(saver)

    def set_train_step(
        self, fn: Callable[..., Any], evaluation_step: Callable[..., Any] | None = None
    ) -> None:
        """Train with ``fn(handler, batch)`` in place of model, loss function and metrics.

        Args:
            fn: returns the loss, a ``StepOutput`` or a dict of its fields. Gradients and optimizer
                steps follow as ever, unless it returns ``backward=False``.
            evaluation_step: the same for evaluation; default: the loss function if one is set, else
                ``fn``.
        """
        for step in (fn, evaluation_step):
            if step is not None and not callable(step):
                raise ConfigurationError(
                    f"a training step must be a function (handler, batch) -> loss, received "
                    f"{step!r}."
                )
        self.parts.train_step, self.parts.evaluation_step = fn, evaluation_step

    # ---- training, evaluating, predicting -------------------------------------------------------

    def fit(
        self,
        train_data: Any = None,
        *,
        epochs: int = 1,
        callbacks: Iterable[Callback] = (),
        validation_data: Any = None,
        validation_split: float = 0.0,
        validate_every: int = 1,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        precision: str | None = None,
        use_amp: bool = False,
        gradient_accumulation_steps: int = 1,
        gradient_clipping_norm: float | None = None,
        gradient_clipping_value: float | None = None,
        ema_decay: float = 0.0,
        compile: bool | dict[str, Any] = False,  # noqa: A002 - the name that torch users know
        seed: int | None = None,
        progress_bar: bool = True,
        save_on_last_epoch: bool = True,
        max_steps: int | None = None,
        max_time: float | str | datetime.timedelta | None = None,
        fast_dev_run: bool | int = False,
        overfit_batches: int | float | None = None,
        resume: str | Path | bool | None = None,
        preemption_signals: Iterable[signal.Signals] = (signal.SIGTERM,),
    ) -> History:
        """Train.

        Args:
            train_data: a Dataset, a DataLoader, an iterable of batches, or ``(x, y)`` of tensors or
                arrays; ``None``: the loader set before.
            epochs: epochs that this call trains; a second call goes on from the first.
            callbacks: attached for this call.
            validation_data: as ``train_data``; ``None``: the loader set before, if any.
            validation_split: the share of the training data, its end, to validate on instead.
            validate_every: epochs between validations.
            batch_size: samples per batch and process where fitkit makes the batches; default 32.
            shuffle: whether to shuffle where fitkit makes the batches; default: yes.
            steps_per_epoch: training batches per epoch; ``None``: all there are.
            validation_steps: validation batches; ``None``: all there are.
            precision: ``"fp32"``, ``"bf16"``, or ``"fp16"`` with loss scaling.
            use_amp: the older spelling of ``precision="fp16"``.
            gradient_accumulation_steps: batches whose gradients make one optimizer step.
            gradient_clipping_norm: largest total 2-norm of the gradients.
            gradient_clipping_value: largest absolute value of a gradient.
            ema_decay: above 0: evaluate, predict and keep an average of the weights (``EMA``).
            compile: run the step through ``torch.compile``; a dict holds options of it, such as
                ``{"mode": "reduce-overhead"}``, which uses CUDA graphs.
            seed: as in the constructor, from this call on.
            progress_bar: show one.
            save_on_last_epoch: ``auto_save`` also saves the last epoch.
            max_steps: training batches that this call trains at most.
            max_time: wall time of the whole run at most: seconds, a timedelta or "DD:HH:MM:SS".
            fast_dev_run: try one batch, or so many, of training and of validation, write nothing,
                and leave everything as it was.
            overfit_batches: train and validate on the first so many batches (an int), or the first
                share of them (a float), in order: a model that cannot fit them has a mistake.
            resume: a file; a folder (its newest whole checkpoint, a fresh start if it has none);
                ``True`` (where this call's own savers write); ``None`` (no). The interrupted call
                itself goes on.
            preemption_signals: signals that announce the end of the process (some schedulers send
                ``signal.SIGUSR1``): the batch is finished, one saver saves, and the process exits
                with 128 plus the signal's number.

        Returns:
            the history of the whole run; after Ctrl-C with ``interrupted=True``.

        Raises:
            FitkitError: something is missing or does not fit.
            SystemExit: after such a signal; with code 143 after SIGTERM.
        """
        arguments = {**locals()}
        del arguments["self"], arguments["use_amp"]
        if use_amp:
            if precision not in (None, "fp16"):
                raise ConfigurationError(
                    f"use_amp=True means precision='fp16', but precision={precision!r}: pass one."
                )
            arguments["precision"] = "fp16"
        return run_fit(self, as_options(**arguments))

    def train(self, epochs: int, validate_every: int = 1, **options: Any) -> History:
        """``fit`` on the loaders set before; ``options`` are those of ``fit``."""
        return self.fit(epochs=epochs, validate_every=validate_every, **options)

    def evaluate(
        self,
        data: Any = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        precision: str | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> dict[str, float]:
        """The loss and metrics over ``data``, each sample counted once.

        Args:
            data: as in ``fit``; ``None``: the validation loader set before.
            batch_size: samples per batch where fitkit makes the batches; default 32.
            steps: batches at most.
            precision: as in ``fit``.
            callbacks: attached for this call.
        """
        values: dict[str, float] = {}
        run = evaluation_run(self, self._for_one_call(callbacks), precision)
        phase = evaluation_phase(self, data, batch_size=batch_size, steps=steps, in_order=False)
        evaluation.evaluate(run, phase, values.update)
        return values

    def predict(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        precision: str | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> Any:
        """The model's outputs on ``data``, in the data's order, joined along the first dimension.

        Args:
            data: inputs, or inputs with targets, in any form that ``fit`` takes; the sampler of a
                DataLoader over a map-style data set is not used, so that order is the data set's.
            batch_size: samples per batch where fitkit makes the batches; default 32.
            steps: batches at most.
            precision: as in ``fit``.
            callbacks: attached for this call.

        Returns:
            tensors on the CPU, nested as the model's outputs.
        """
        run = evaluation_run(self, self._for_one_call(callbacks), precision)
        phase = evaluation_phase(self, data, batch_size=batch_size, steps=steps, in_order=True)
        return evaluation.predict(run, phase, split_inputs, self._in_rounds)

    # ---- looking before training ----------------------------------------------------------------

    def summary(self, example: Any = None, *, input_size: Any = None) -> ModelSummary:
        """What the model is made of: modules, output shapes, parameters, and memory.

        Args:
            example: a batch or inputs. Shapes come from one pass over it in evaluation mode, which
                leaves the model as it was; without it there are none.
            input_size: in its place the shape of the input, with the batch dimension, for a pass
                over zeros; a list of shapes for several inputs.

        Returns:
            the table, to be printed or shown by a notebook.
        """
        return summarize(self, example, input_size)

    def find_learning_rate(
        self,
        train_data: Any = None,
        *,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        num_steps: int = 100,
        batch_size: int | None = None,
        smoothing: float = 0.9,
        divergence: float = 4.0,
        **options: Any,
    ) -> LearningRateSweep:
        """Train while the rate grows from batch to batch, and leave everything as it was.

        Smith's range test (arXiv:1506.01186), with rates that grow exponentially.

        Args:
            train_data: as in ``fit``, but not an iterator, which could not be put back.
            min_lr: the first rate, above 0; groups keep their rates relative to the first group's.
            max_lr: the last one, above ``min_lr``.
            num_steps: batches, at least 5; shorter data is read again.
            batch_size: as in ``fit``.
            smoothing: weight of the past in the running mean of the loss, in ``[0, 1)``.
            divergence: end when that mean is so many times its least.
            **options: of ``fit``: ``precision``, ``compile``, ``ema_decay`` and
                ``gradient_...``.

        Raises:
            FitkitError: something is missing or does not fit.
        """
        judging = (smoothing, divergence)
        rates = (min_lr, max_lr, num_steps)
        return sweep_learning_rates(self, train_data, rates, judging, batch_size, options)

    def find_batch_size(
        self,
        train_data: Any = None,
        *,
        start: int = 2,
        max_size: int | None = None,
        num_steps: int = 3,
        **options: Any,
    ) -> int:
        """The largest batch that trains without running out of memory; all is left as it was.

        The size is doubled until memory runs out, then bisected. Take a little less: what else
        uses the device, and longer samples, need room too. A system that ends a process for
        memory, as Linux does for the host's, cannot be caught: pass ``max_size`` on a CPU.

        Args:
            train_data: as in ``fit``, of a kind whose batches can be made anew.
            start: the first size.
            max_size: the largest; ``None``: as many samples as there are.
            num_steps: batches that a size has to train, at least 1; the optimizer's memory is
                taken in the first.
            **options: as for ``find_learning_rate``.

        Raises:
            FitkitError: something is missing or does not fit.
            RuntimeError: not even one sample fits; or a ``MemoryError``.
        """
        return search_batch_size(self, train_data, start, max_size, num_steps, options)

    def _in_rounds(self, outputs: list[Any]) -> list[Any]:
        """The outputs of all processes, which take turns in the order of the data."""
        rounds = zip(*self._world.gather_all(outputs), strict=True)
        return [output for turn in rounds for output in turn if output is not None]

    def _for_one_call(self, callbacks: Iterable[Callback]) -> CallbackList:
        """The handler's callbacks and those of one evaluation."""
        if self.unfinished.run is not None and not callbacks:
            return self._callbacks
        listeners = CallbackList([*self._callbacks, *callbacks])
        for callback in callbacks:
            callback.handler = self
        for callback in self._callbacks:
            callback.handler = self
        return listeners

    # ---- saving and loading ---------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the whole state to ``path`` at once; on return the file is whole and durable.

        Of several processes the main one writes. In the middle of an epoch all have to call it; of
        a sharded model each writes its part, so all have to call it at any time.

        Raises:
            SaveError: it could not be written; an earlier file of that name is as it was.
        """
        self.wait_for_saves()
        with self.contributions(), saving.logged(self.logger, path):
            self.saves.save_now(snapshot.take(self), Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        *,
        model_class: type[nn.Module] | nn.Module | None = None,
        strict_load: bool = True,
        skip_optimizer: bool = False,
        skip_scheduler: bool = False,
        skip_history: bool = False,
        skip_callbacks: bool = False,
        skip_sampler_sde: bool = False,
        skip_ema: bool = False,
        strategy: Strategy | str | None = "auto",
        trust_code: bool = False,
    ) -> NNHandler:
        """A handler as it was saved; the next ``fit`` goes on from there.

        Data, and a loss function that is not one of torch's modules, must be set again. Nothing
        that is stored in the file is executed, unless ``trust_code``.

        Args:
            path: a full checkpoint.
            device: as in the constructor; it need not be the one that was saved.
            model_class: the class or a ready module, where the one named in the file is not
                imported or its arguments could not be stored.
            strict_load: whether names of weights must match exactly.
            skip_optimizer: leave out the optimizer, and with it the scheduler.
            skip_scheduler: leave out the scheduler.
            skip_history: leave out the history.
            skip_callbacks: leave out the callbacks' states.
            skip_sampler_sde: leave out sampler and SDE.
            skip_ema: leave out the averaged weights.
            strategy: as in the constructor; it need not be the one that was saved.
            trust_code: run the model's source in the file where the program lacks its class.

        Raises:
            CheckpointError: the file cannot be used; the sentence says why.
        """
        chosen = as_strategy(strategy)
        world = find_world(None, timeout=timeout_of(chosen))
        parallel = make_parallel(chosen, world, _device_of(device, world))
        state = discovery.read_full(Path(path), parallel.empty_piece)
        model, kwargs = description.model_of(state, path, model_class, trust_code=trust_code)
        with description.rebuilding("model", "pass model_class=<a ready module>"):
            kind = state["model_type"]
            handler = cls(model, device, model_type=kind, strategy=parallel, **kwargs)
        handler._model_code = state["model_code"]
        skips = snapshot.Skips(
            skip_optimizer,
            skip_scheduler,
            skip_history,
            skip_callbacks,
            skip_sampler_sde,
            skip_ema,
        )
        description.rebuild_parts(
            handler, state, optimizer=not skip_optimizer, scheduler=not skip_scheduler
        )
        if not skip_sampler_sde:
            rebuild_generative(handler, state)
        snapshot.restore(handler, state, strict=strict_load, skips=skips, is_undone=True)
        handler.calls_made = handler.state.call
        return handler

    @classmethod
    def initialize_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        model_class: type[nn.Module] | nn.Module,
        model_type: types.ModelType | str | None = None,
        device: torch.device | str | None = None,
        strict_load: bool = True,
        *,
        strategy: Strategy | str | None = "auto",
        **model_kwargs: Any,
    ) -> NNHandler:
        """A new handler with only the weights of a checkpoint, or of a bare state dict.

        Of a checkpoint with averaged weights (EMA) it takes those, as they were scored.

        Raises:
            CheckpointError: the file cannot be used, or its weights do not fit.
        """
        kind = types.ModelType.CLASSIFICATION if model_type is None else model_type
        handler = cls(model_class, device, model_type=kind, strategy=strategy, **model_kwargs)
        weights = loading.read_weights(checkpoint_path, empty=handler.parallel.empty_piece)
        snapshot.check_weights(handler.module, weights, strict=strict_load)
        handler.load_weights(weights, strict=strict_load)
        return handler


def _device_of(device: Any, world: World) -> torch.device:
    resolved = resolve_device(device, world.local_rank if world.size > 1 else None)
    require_own_device(world, resolved)
    make_current(resolved)
    return resolved


loading.provide_handler_class(NNHandler)
