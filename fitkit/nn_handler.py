"""NNHandler: the public class. It documents every verb; other files do the work."""

from __future__ import annotations

import datetime
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.callbacks.history import History
from fitkit.checkpointing import saving
from fitkit.checkpointing.autosaver import DEFAULT_NAME, AutoSaver
from fitkit.checkpointing.model_source.collect import model_source
from fitkit.core import types
from fitkit.core.argument_checks import require_count
from fitkit.core.callback import Callback
from fitkit.core.errors import ConfigurationError
from fitkit.core.state_placement import detached_copy
from fitkit.data.spec import DataSpec, with_targets
from fitkit.data.validation_sets import add_validation_sets
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.strategy import Strategy
from fitkit.generative.sampler import Sampler
from fitkit.generative.score_model import ScoreModel
from fitkit.generative.sde import SDE
from fitkit.generative.state import load_pending
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.load import load_handler, load_weights, set_up_rank
from fitkit.handler.parts import ParameterGroups, Parts
from fitkit.handler.rank_calls import batches_of, configuring, together, together_or_alone
from fitkit.handler.repr import as_html, as_text
from fitkit.handler.savable_metric import require_savable_metric
from fitkit.handler.save_source import make_save_queue
from fitkit.handler.set_and_load import set_loss, set_optimizer, set_scheduler
from fitkit.handler.state_dict import SkipParts, handler_state_dict
from fitkit.metrics.metric import require_metric
from fitkit.runtime.handler_logger import make_logger
from fitkit.runtime.rng import seeded_streams
from fitkit.summary.model_summary import ModelSummary
from fitkit.summary.summarize import summarize
from fitkit.training.build_evaluation import HandlerEvaluator
from fitkit.training.evaluate import PassOptions, evaluate, predict, predict_batches
from fitkit.training.fit import run_fit
from fitkit.training.options import FitOptions
from fitkit.tuning.batch_size_finder import find_batch_size
from fitkit.tuning.lr_finder import LearningRateSweep, find_learning_rate


class NNHandler(BaseHandler):
    """Trains, evaluates, saves and resumes a model.

    Args:
        model_class: a ``torch.nn.Module`` subclass, built with ``model_kwargs``; or a ready module.
        device: where to train; ``None``: CUDA if there is any, else the CPU. It becomes torch's
            current device.
        logger_mode: ``LoggingMode`` or its value: where log lines go; ``None``: to the logger
            ``"fitkit"`` of the ``logging`` module.
        logger_filename: the file of the FILE and BOTH modes.
        logger_level: the lowest level that is logged.
        save_model_code: save the source of the model, and of what it uses, in checkpoints.
        model_type: ``ModelType`` or its value: how a batch becomes a loss.
        use_distributed: ``None``: as the launcher's environment says; ``False``: one process.
        strategy: how several ranks train: ``"ddp"`` (and ``"auto"``), each with the whole model;
            ``"fsdp"``, each with a part of every parameter; or a ``DDP`` or ``FSDP`` object.
        seed: decides the model's initial weights and everything that ``fit`` draws; ``None``:
            torch's global generator decides.
        **model_kwargs: arguments of ``model_class``.

    Attributes:
        world: the ranks of the run.
        logger: the handler's logger.

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
        if seed is not None:
            require_count("seed", seed, minimum=0)
        kind = types.ModelType.parse(model_type)
        name = "NNHandler"
        world, own_device, parallel = set_up_rank(
            name, device, strategy, use_distributed=use_distributed
        )
        with world.call(name, meets=False):
            # a seed given here must not disturb the program's own random streams
            with nullcontext() if seed is None else seeded_streams(seed, own_device):
                parts = Parts(model_class, model_kwargs, kind, own_device, parallel)
            arguments = () if parts.model_spec is None else parts.model_spec.kwargs.values()
            code = model_source(parts.module, arguments) if save_model_code else None
        super().__init__(parts, world, parallel, logger, seed, code)
        self.saves = make_save_queue(self)
        self._score_model = ScoreModel(parts.generative, HandlerEvaluator(self))

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        """A table of the parts and of the progress, and the history, for a notebook."""
        return as_html(self)

    # ---- components -----------------------------------------------------------------------------

    @configuring
    def set_optimizer(
        self, cls: type[Optimizer], *, params: ParameterGroups | None = None, **kwargs: Any
    ) -> None:
        """Optimize the model with ``cls(parameters, **kwargs)``.

        Args:
            cls: an optimizer class.
            params: returns parameters or parameter groups of the module; default: all parameters.
            **kwargs: arguments of the class, such as ``lr``.
        """
        self.session.require_outside_fit("set_optimizer")
        set_optimizer(self, cls, kwargs, params)

    @configuring
    def set_scheduler(
        self,
        cls: type[LRScheduler],
        *,
        interval: str = "epoch",
        monitor: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> None:
        """Schedule the learning rate with ``cls(optimizer, **kwargs)``.

        Args:
            cls: a class of ``torch.optim.lr_scheduler``.
            interval: ``"epoch"``, or ``"step"`` for optimizer steps.
            monitor: the value for ``ReduceLROnPlateau``; default: ``val_loss``, or ``loss`` where
                there is no validation. A value that a callback logs must be logged before
                ``on_epoch_end``.
            strict: ``False``: wait for a value that only some epochs log, as in ``EarlyStopping``.
            **kwargs: arguments of the class without the optimizer.
        """
        self.session.require_outside_fit("set_scheduler")
        set_scheduler(self, cls, kwargs, interval, monitor)
        self.parts.scheduler_strict = strict

    @configuring
    def set_loss_fn(
        self,
        fn: Callable[..., Any],
        pass_epoch_to_loss: bool = False,
        *,
        weight: Any = None,
        **kwargs: Any,
    ) -> None:
        """Use ``fn(outputs, targets, **kwargs)``, a scalar mean over the batch, as the loss.

        Accumulation windows, ranks and epochs combine batches by what that mean is over. For
        torch's losses it is known: elements, targets that are not ``ignore_index``, class weights.

        A model that returns its loss, as those of transformers do for batches with labels, needs
        none: batches are passed to it by name, and ``outputs.loss`` is the loss.

        Args:
            fn: a function or module; a class is built with ``kwargs`` instead. For score-based
                models it is called as ``fn(model, *inputs)``. Parameters and buffers of a module
                are saved; ``set_optimizer(params=...)`` trains them.
            pass_epoch_to_loss: also pass ``epoch=``, from 0.
            weight: ``(outputs, targets)`` -> what the mean is over, a number or a tensor of one
                element, such as the number of tokens; with 0 the batch does not count. ``None``: as
                torch's losses do, else the number of samples. A tensor is an argument of ``fn``.
            **kwargs: further arguments of each call.
        """
        self.session.require_outside_fit("set_loss_fn")
        if weight is not None and (isinstance(weight, Tensor) or not callable(weight)):
            weight, kwargs = None, {**kwargs, "weight": weight}
        set_loss(self, fn, pass_epoch_to_loss, kwargs, weight)

    @configuring
    def set_train_loader(self, dataset: Any, **loader_kwargs: Any) -> None:
        """Set the training data for calls of ``fit`` that are given none.

        Args:
            dataset: a data set, arrays, a DataLoader or an iterable of batches.
            **loader_kwargs: ``batch_size`` (32), ``shuffle`` (yes), or ``global_batch_size``,
                ``num_samples`` and ``split`` as in ``fit``, and other arguments of
                ``torch.utils.data.DataLoader``.
        """
        self.session.require_outside_fit("set_train_loader")
        self.parts.train_data = DataSpec.from_loader_kwargs(dataset, loader_kwargs)

    @configuring
    def set_val_loader(
        self, dataset: Any, *, name: str | None = None, **loader_kwargs: Any
    ) -> None:
        """Set the validation data, in place of what was set before.

        Args:
            dataset: as in ``set_train_loader``, or several sets by name as in ``fit``.
            name: add or replace the set of this name instead; the others stay.
            **loader_kwargs: as in ``set_train_loader``, but not shuffled by default.
        """
        self.session.require_outside_fit("set_val_loader")
        self.parts.validation_data = add_validation_sets(
            self.parts.validation_data, dataset, name, loader_kwargs
        )

    @configuring
    def add_metric(self, name: str, metric: Any) -> None:
        """Log ``metric`` as ``name``, and as ``val_name`` in validation.

        Args:
            name: its name in the logs.
            metric: a function ``(outputs, targets) -> mean over the batch``, a ``fitkit.Metric``
                or ``EpochMetric``, or an object with ``update``, ``compute`` and ``reset`` such as
                a torchmetrics ``Metric``; without ``state_dict`` its attributes are its state.
        """
        self.session.require_outside_fit("add_metric")
        require_metric(name, metric, taken=self.parts.metrics)
        require_savable_metric(name, metric)
        self.parts.metrics[name] = metric

    def add_callback(self, callback: Callback) -> None:
        """Attach a callback for all later calls."""
        self.callbacks.add(callback)

    def remove_callback(self, callback: Callback) -> None:
        """Detach a callback."""
        self.callbacks.remove(callback)

    @configuring
    def auto_save(
        self,
        interval: int | None,
        save_path: str | Path = ".",
        name: str = DEFAULT_NAME,
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
        self.session.require_outside_fit("auto_save")
        saver = AutoSaver(interval, save_path, name, overwrite, **options)
        if self.auto_saver is not None:
            self.callbacks.remove(self.auto_saver)
        if interval:
            self.callbacks.add(saver)

    @configuring
    def set_train_step(
        self, fn: Callable[..., Any], evaluation_step: Callable[..., Any] | None = None
    ) -> None:
        """Train with your own step ``fn(handler, batch)`` in place of model and loss function.

        Args:
            fn: returns the loss, a ``StepOutput`` or a dict of its fields. The backward pass and
                the optimizer step follow, unless it returns ``backward=False``.
            evaluation_step: the same for evaluation; default: the loss function if one is set, else
                ``fn``.
        """
        self.session.require_outside_fit("set_train_step")
        for step in (fn, evaluation_step):
            if step is not None and not callable(step):
                raise ConfigurationError(
                    f"a step must be a function (handler, batch) -> loss, received {step!r}."
                )
        self.parts.train_step, self.parts.evaluation_step = fn, evaluation_step

    @configuring
    def set_predict_step(self, fn: Callable[..., Any] | None) -> None:
        """Predict with ``fn(handler, batch)``, such as ``generate`` of a language model.

        It replaces the splitting of the batch and the call of the model in ``predict`` and
        ``predict_batches``, in evaluation mode, with averaged weights and without gradients. It is
        not part of a checkpoint.

        Args:
            fn: returns the outputs of a batch, which is on the device; ``None``: call the model.
        """
        self.session.require_outside_fit("set_predict_step")
        if fn is not None and not callable(fn):
            raise ConfigurationError(
                f"a predict step must be a function (handler, batch) -> outputs, received {fn!r}."
            )
        self.parts.predict_step = fn

    # ---- fit, evaluate, predict -----------------------------------------------------------------

    @together
    def fit(
        self,
        train_data: Any = None,
        y: Any = None,
        *,
        epochs: int = 1,
        callbacks: Iterable[Callback] = (),
        validation_data: Any = None,
        validation_split: float = 0.0,
        validate_every: int = 1,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        num_samples: Callable[[Any], int] | None = None,
        split: str = "auto",
        drop_last: bool | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        grad: bool = False,
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
        """Train the model.

        Args:
            train_data: a Dataset, a DataLoader, an iterable of batches, or ``(x, y)`` of tensors,
                arrays or frames; ``None``: that of ``set_train_loader``.
            y: the targets, where ``train_data`` is only the inputs: ``fit(x, y)``.
            epochs: epochs that this call trains; a second call goes on from the first.
            callbacks: attached for this call.
            validation_data: as ``train_data``, or several sets by name: ``{"clean": a, ...}`` logs
                ``val_clean_loss`` and so on. A dict of arrays (``{"x": ..., "y": ...}``) is one
                set; a named set of one array is ``(x,)``. ``None``: those of ``set_val_loader``.
            validation_split: share of the training data, from its end, to validate on instead.
            validate_every: epochs between validations.
            batch_size: samples per batch and rank where fitkit makes the batches; default 32.
            shuffle: whether to shuffle where fitkit makes the batches; default: yes.
            num_samples: returns the number of samples in a batch of training or validation data
                that are passed here, where a loader or the batch does not say it.
            split: how several ranks share data that is passed here. ``"rank"``: the data of each
                rank is its own part, of any length; ``"auto"``: all ranks have the same data, of
                which each trains its share, unless the data is known to be split by rank.
            drop_last: leave out a last training batch that is not full.
            collate_fn: makes a batch of a list of samples, also for a Dataset to validate on.
            steps_per_epoch: training batches per epoch; ``None``: all there are.
            validation_steps: validation batches of each set; ``None``: all there are.
            grad: whether validation records gradients too, for a model, a loss or an evaluation
                step that differentiates, such as forces of an energy. Memory is that of training.
            precision: ``"fp32"``, ``"bf16"``, or ``"fp16"`` with loss scaling.
            use_amp: the older spelling of ``precision="fp16"``.
            gradient_accumulation_steps: batches whose gradients make one optimizer step.
            gradient_clipping_norm: largest total 2-norm of the gradients.
            gradient_clipping_value: largest absolute value of a gradient.
            ema_decay: above 0: evaluate, predict and save with averaged weights (``EMA``).
            compile: use ``torch.compile``; a dict has its options, such as
                ``{"mode": "reduce-overhead"}`` for CUDA graphs.
            seed: as in the constructor, from this call on.
            progress_bar: whether to show one.
            save_on_last_epoch: whether ``auto_save`` also saves the last epoch.
            max_steps: largest number of training batches of this call.
            max_time: longest wall time of the whole run: seconds, a timedelta or "DD:HH:MM:SS".
            fast_dev_run: try one batch, or this number, of training and of validation; nothing is
                written, and the handler stays as it was.
            overfit_batches: train and validate on the first batches only, in order: their number
                (an int) or share (a float). A model that cannot fit them has a mistake.
            resume: a file; a folder (its newest whole checkpoint, or a new start if it has none);
                ``True`` (where this call's own savers write); ``None`` (no). The interrupted call
                is continued.
            preemption_signals: signals that announce the end of the process (some schedulers send
                ``signal.SIGUSR1``): the batch is finished, one saver saves, and the process exits
                with 128 plus the signal's number.

        Returns:
            the history of the whole run; after Ctrl-C with ``interrupted=True``.

        Raises:
            FitkitError: something is missing or does not fit.
            SystemExit: after such a signal; with code 143 after SIGTERM.
        """
        if use_amp and precision not in (None, "fp16"):
            raise ConfigurationError(
                f"use_amp=True means precision='fp16', but precision={precision!r}: pass one."
            )
        options = FitOptions(
            train_data=with_targets(train_data, y),
            epochs=epochs,
            callbacks=callbacks,
            validation_data=validation_data,
            validation_split=validation_split,
            validate_every=validate_every,
            batch_size=batch_size,
            shuffle=shuffle,
            num_samples=num_samples,
            split=split,
            drop_last=drop_last,
            collate_fn=collate_fn,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            grad=grad,
            precision="fp16" if use_amp else precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            gradient_clipping_norm=gradient_clipping_norm,
            gradient_clipping_value=gradient_clipping_value,
            ema_decay=ema_decay,
            compile=compile,
            seed=seed,
            progress_bar=progress_bar,
            save_on_last_epoch=save_on_last_epoch,
            max_steps=max_steps,
            max_time=max_time,
            fast_dev_run=fast_dev_run,
            overfit_batches=overfit_batches,
            resume=resume,
            preemption_signals=preemption_signals,
        )
        return run_fit(self, options)

    def train(self, epochs: int, validate_every: int = 1, **options: Any) -> History:
        """``fit`` with the data set before; ``options`` are those of ``fit``."""
        return self.fit(epochs=epochs, validate_every=validate_every, **options)

    @together_or_alone
    def evaluate(
        self,
        data: Any = None,
        y: Any = None,
        *,
        batch_size: int | None = None,
        num_samples: Callable[[Any], int] | None = None,
        steps: int | None = None,
        precision: str | None = None,
        grad: bool = False,
        callbacks: Iterable[Callback] = (),
        split: str = "auto",
    ) -> dict[str, float]:
        """Loss and metrics over ``data``, each sample counted once.

        Args:
            data: as ``validation_data`` in ``fit``; ``None``: that of ``set_val_loader``.
            y: the targets, as in ``fit``.
            batch_size: as in ``fit``.
            num_samples: as in ``fit``.
            steps: largest number of batches.
            precision: as in ``fit``.
            grad: whether gradients are recorded, as in ``fit``.
            callbacks: attached for this call.
            split: as in ``fit``.

        Returns:
            the values by name; those of a named set have its name before theirs, as in
            ``clean_loss``.
        """
        options = PassOptions(batch_size, num_samples, steps, precision, grad, callbacks, split)
        return evaluate(self, with_targets(data, y), options)

    @together_or_alone
    def predict(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        num_samples: Callable[[Any], int] | None = None,
        steps: int | None = None,
        precision: str | None = None,
        grad: bool = False,
        callbacks: Iterable[Callback] = (),
        tensors_only: bool = False,
        return_outputs: bool = True,
    ) -> Any:
        """The model's outputs on ``data``, in the data's order, joined along the first dimension.

        Tuples, named tuples, mappings and dataclasses are structures whose parts are joined. A list
        with as many elements as the batch has samples (detectors, generated texts) has one object
        per sample: lists are concatenated, the objects stay as they are. A list of tensors with one
        row per sample each is a structure too. If a list may be both in all batches, it is refused.

        Args:
            data: inputs, or inputs with targets, in any form that ``fit`` takes. The sampler of a
                DataLoader over a map-style data set is not used.
            batch_size: as in ``fit``.
            num_samples: as in ``fit``; it matters for outputs with lists.
            steps: largest number of batches.
            precision: as in ``fit``.
            grad: whether gradients are recorded, as in ``fit``.
            callbacks: attached for this call, such as ``PredictionWriter``.
            tensors_only: leave out the parts of the outputs in which there is no tensor, such as a
                cache or ``None``: a mapping loses the key, elsewhere ``None`` is in its place. By
                default such a part is refused.
            return_outputs: ``False``: only callbacks get the outputs, and memory use is constant.

        Returns:
            tensors on the CPU, nested as the model's outputs, on several ranks those of all; bf16
            and fp16 become float32. ``None`` without ``return_outputs``.

        Raises:
            DataError: outputs cannot be joined; after the first batch where that can be seen in it.
        """
        options = PassOptions(batch_size, num_samples, steps, precision, grad, callbacks)
        return predict(
            self, data, options, tensors_only=tensors_only, return_outputs=return_outputs
        )

    @together_or_alone
    def predict_batches(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        num_samples: Callable[[Any], int] | None = None,
        steps: int | None = None,
        precision: str | None = None,
        grad: bool = False,
        callbacks: Iterable[Callback] = (),
        tensors_only: bool = False,
    ) -> Iterator[Any]:
        """Yield the model's outputs batch by batch, on the CPU, in constant memory.

        Each batch is computed when it is asked for, with the weights of that moment. Between two
        batches the model has its own modes and weights: you may train, evaluate or stop early.
        Averaged weights are swapped for each batch, in ``predict(return_outputs=False)`` once.
        On several ranks all call it, and each yields the outputs of its own share of every batch;
        ranks may stop at different batches, except those of a sharded model (FSDP).

        Args:
            data: as in ``predict``.
            batch_size: as in ``fit``.
            num_samples: as in ``fit``; it matters for outputs with lists.
            steps: largest number of batches.
            precision: as in ``fit``.
            grad: whether gradients are recorded, as in ``fit``.
            callbacks: attached for this call.
            tensors_only: as in ``predict``; by default outputs that are no tensors are yielded too,
                as the model returned them.
        """
        options = PassOptions(batch_size, num_samples, steps, precision, grad, callbacks)
        outputs = predict_batches(self, data, options, tensors_only=tensors_only)
        return batches_of(self.world, "predict_batches", outputs)

    # ---- summary and tuning ---------------------------------------------------------------------

    def summary(self, example: Any = None, *, input_size: Any = None) -> ModelSummary:
        """A table of modules, output shapes, parameters and memory.

        Args:
            example: a batch or inputs, for the output shapes: they are taken from one pass over it
                in evaluation mode, which leaves the model as it was.
            input_size: in its place the shape of the input, with the batch dimension, for a pass
                over zeros; a list of shapes for several inputs.
        """
        return summarize(
            self.module, self.optimizer, self.device, self.parts.model_type, example, input_size
        )

    @together
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
        """Train with a learning rate that grows from batch to batch; the handler stays as it was.

        Smith's range test (arXiv:1506.01186), with rates that grow exponentially.

        Args:
            train_data: as in ``fit``, but not an iterator, which cannot be rewound.
            min_lr: the first rate, above 0; groups keep their rates relative to the first group's.
            max_lr: the last rate, above ``min_lr``.
            num_steps: batches, at least 5; shorter data is read again.
            batch_size: as in ``fit``.
            smoothing: weight of the past in the running mean of the loss, in ``[0, 1)``.
            divergence: end when that mean is this many times its minimum; above 1.
            **options: of ``fit``: ``precision``, ``compile``, ``ema_decay`` and ``gradient_...``.
        """
        return find_learning_rate(
            self, train_data, min_lr, max_lr, num_steps, batch_size, smoothing, divergence, options
        )

    @together
    def find_batch_size(
        self,
        train_data: Any = None,
        *,
        start: int = 2,
        max_size: int | None = None,
        num_steps: int = 3,
        **options: Any,
    ) -> int:
        """The largest batch size that trains in the memory there is; the handler stays as it was.

        The size is doubled until memory runs out, then bisected. Use a little less: longer samples
        and other programs need memory too. On a CPU pass ``max_size``: Linux kills a process that
        takes too much of the host's memory.

        Args:
            train_data: as in ``fit``, of a kind from which fitkit makes the batches.
            start: the first size.
            max_size: the largest size; ``None``: the number of samples.
            num_steps: batches that each size trains, at least 1; the optimizer allocates its state
                in the first.
            **options: as for ``find_learning_rate``.

        Raises:
            RuntimeError: not even one sample fits; or a ``MemoryError``.
        """
        return find_batch_size(self, train_data, start, max_size, num_steps, options)

    # ---- score-based models and samplers --------------------------------------------------------

    @configuring
    def set_sde(
        self,
        cls: type[SDE],
        *,
        divide_by_std: bool = True,
        likelihood_weighting: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train the model as the score of data under ``cls(**kwargs)``.

        The model is called as ``model(t, x, *conditions)``, with times of shape ``(batch,)``, and
        returns a tensor shaped as ``x``. Unless ``set_loss_fn`` is called, the loss is
        ``DenoisingScoreMatching``.

        Args:
            cls: ``VPSDE``, ``VESDE``, ``SubVPSDE`` or another SDE of ``fitkit.generative``.
            divide_by_std: the score is the model's output divided by the marginal standard
                deviation at ``t``; ``False``: the output is the score.
            likelihood_weighting: weight times as in ``DenoisingScoreMatching``.
            **kwargs: arguments of the class.

        Raises:
            ConfigurationError: the handler's model is not score-based, or an argument is wrong.
        """
        self.session.require_outside_fit("set_sde")
        generative, kind = self.parts.generative, self.parts.model_type
        if kind is not types.ModelType.SCORE_BASED:
            raise ConfigurationError(
                f"set_sde needs a handler with model_type='score_based', this one's is "
                f"{kind.value!r}."
            )
        generative.set_sde(
            cls, kwargs, divide_by_std=divide_by_std, likelihood_weighting=likelihood_weighting
        )
        load_pending(generative, self.session.pending)

    @configuring
    def set_sampler(self, sampler: type[Sampler] | Sampler, **kwargs: Any) -> None:
        """Draw with your own sampler in ``get_samples``.

        Args:
            sampler: a class with the methods of ``fitkit.generative.Sampler``, built with
                ``kwargs``; or a ready one, which must be set again after loading.
            **kwargs: arguments of the class.
        """
        self.session.require_outside_fit("set_sampler")
        self.parts.generative.set_sampler(sampler, kwargs)
        load_pending(self.parts.generative, self.session.pending)

    @property
    def sde(self) -> SDE | None:
        """The SDE, once set."""
        return self.parts.generative.sde

    @property
    def sampler(self) -> Sampler | None:
        """The sampler, once set."""
        return self.parts.generative.sampler

    def get_samples(self, n: int, device: torch.device | str | None = None, **options: Any) -> Any:
        """``n`` samples drawn by the sampler; for ``options`` see ``ScoreModel.get_samples``."""
        return self._score_model.get_samples(n, device, **options)

    def score(self, t: Tensor | float, x: Tensor, *conditions: Tensor) -> Tensor:
        """The model's score at ``x`` and time ``t``; see ``ScoreModel.score``."""
        return self._score_model.score(t, x, *conditions)

    def sample(self, shape: Sequence[int], steps: int = 500, **options: Any) -> Tensor:
        """Samples drawn by the SDE; for ``options`` see ``ScoreModel.sample``."""
        return self._score_model.sample(shape, steps, **options)

    def log_likelihood(self, x: Tensor, **options: Any) -> Tensor:
        """The log-density of each of ``x``, in nats; see ``ScoreModel.log_likelihood``."""
        return self._score_model.log_likelihood(x, **options)

    # ---- checkpoints ----------------------------------------------------------------------------

    def get_state_dict(self) -> dict[str, Any]:
        """The whole state, as ``save`` writes it, with copies of the tensors.

        Inside an epoch all ranks have to call it.
        """
        with self.session.gathered_from_ranks("handler.get_state_dict"):
            return handler_state_dict(self, self.parallel.on_local_tensors(detached_copy))

    def save(self, path: str | Path) -> None:
        """Write the whole state to ``path``: an atomic write, durable on return.

        Rank 0 writes. Inside an epoch all ranks have to call it, and of a sharded model, of which
        each rank writes its part, at any time.

        Raises:
            SaveError: it could not be written; an earlier file of that name is as it was.
        """
        self.wait_for_saves()
        with self.session.gathered_from_ranks("handler.save"), saving.logged(self.logger, path):
            self.saves.save_now(handler_state_dict(self, for_file=True), Path(path))

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
        """Build a handler from a checkpoint; its next ``fit`` goes on from there.

        Data, and a loss function that is not one of torch's modules, must be set again. No code in
        the file is run, unless ``trust_code``.

        Args:
            path: a full checkpoint.
            device: as in the constructor; any, whatever was saved.
            model_class: the class or a ready module, where the program does not have the class
                named in the file, or its arguments could not be stored.
            strict_load: whether names of weights must match exactly.
            skip_optimizer: leave out the optimizer and the scheduler.
            skip_scheduler: leave out the scheduler.
            skip_history: leave out the history.
            skip_callbacks: leave out the callbacks' states.
            skip_sampler_sde: leave out sampler and SDE.
            skip_ema: leave out the averaged weights.
            strategy: as in the constructor; any, whatever was saved.
            trust_code: run the model's source in the file where the program lacks its class.

        Raises:
            CheckpointError: the file cannot be used; the message says why.
        """
        skip = SkipParts(
            optimizer=skip_optimizer,
            scheduler=skip_scheduler,
            history=skip_history,
            callbacks=skip_callbacks,
            sampler_sde=skip_sampler_sde,
            ema=skip_ema,
        )
        return load_handler(
            cls, path, device, strategy, model_class, skip, strict_load, trust_code=trust_code
        )

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
        """Build a new handler with only the weights of a checkpoint, or of a bare state dict.

        It takes the averaged weights (EMA) if the checkpoint has some. Arguments are those of the
        constructor and of ``load``.

        Raises:
            CheckpointError: the file cannot be used, or its weights do not fit.
        """
        kind = types.ModelType.CLASSIFICATION if model_type is None else model_type
        handler = cls(model_class, device, model_type=kind, strategy=strategy, **model_kwargs)
        with handler.world.call("initialize_from_checkpoint"):
            load_weights(handler, checkpoint_path, strict=strict_load)
        return handler
