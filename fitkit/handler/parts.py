"""Parts: the components of a handler, as the user described them and as they were built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.checkpointing.format.component_config import TORCH_LOSSES
from fitkit.core.component_spec import ComponentSpec, LossSpec
from fitkit.core.errors import ConfigurationError, describe
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.tree import map_tensors
from fitkit.core.types import ModelType
from fitkit.data.spec import DataSpec
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World
from fitkit.engine.loss_weight import loss_weight
from fitkit.engine.lr_schedule import require_interval
from fitkit.engine.model_loss import takes_labels
from fitkit.generative.components import GenerativeComponents
from fitkit.handler.build_model import build_model
from fitkit.handler.group_options import Options, options_of
from fitkit.handler.optimizer_state import has_modes
from fitkit.handler.scheduler_start import SchedulerStart, are_schedulers_of
from fitkit.handler.torch_compile import (
    CompiledOptimizer,
    compiled,
    is_worth_compiling,
    make_capturable_undo,
)

ParameterGroups = Callable[[nn.Module], Iterable[Any]]


class Parts:
    """The components of one handler. Setters may be called in any order.

    Attributes:
        module: the model without wrappers.
        model: the model as it is called: compiled, or the module itself.
        model_spec: class and arguments of the model, ``None`` for a ready module.
        model_type: how a batch becomes a loss.
        device: where the model is.
        built_options: options of each group of the optimizer when it was built.
        scheduler_start: what the scheduler was and did when it was built.
        generative: SDE and sampler.
    """

    def __init__(
        self,
        model: Any,
        kwargs: Mapping[str, Any],
        model_type: ModelType,
        device: torch.device,
        parallel: Parallel | None = None,
    ) -> None:
        self.model_type, self.device = model_type, device
        place = partial((parallel or Parallel(World())).place, device=device)
        self.model_spec, self.module = build_model(model, kwargs, place)
        self.model: nn.Module = self.module
        self.optimizer_spec: ComponentSpec | None = None
        self.optimizer: Optimizer | None = None
        self.built_options: list[Options] = []
        self.scheduler_spec: ComponentSpec | None = None
        self.scheduler_interval = "epoch"
        self.scheduler_monitor: str | None = None
        self.scheduler_strict = True
        self.scheduler: LRScheduler | None = None
        self.scheduler_start: SchedulerStart | None = None
        self.loss: LossSpec | None = None
        self.generative = GenerativeComponents()
        self.train_data: DataSpec | None = None
        self.validation_data: dict[str, DataSpec] = {}
        self.metrics: dict[str, Any] = {}
        self.train_step: Callable[..., Any] | None = None
        self.evaluation_step: Callable[..., Any] | None = None
        self.predict_step: Callable[..., Any] | None = None
        self._compile_options: dict[str, Any] | None = None
        self._compiled_loss: Callable[[Any, Any], tuple[Tensor, Any]] | None = None
        self._compiled_optimizer: CompiledOptimizer | None = None

    def make_undo(self) -> Callable[[], None]:
        """A function that puts back the parts that are set now."""
        before = {**vars(self), "metrics": dict(self.metrics)}
        undo_capturable = make_capturable_undo(self.optimizer)

        def undo() -> None:
            vars(self).update(before)
            undo_capturable()

        return undo

    # ---- setters --------------------------------------------------------------------------------

    def set_optimizer(
        self, cls: type[Any], kwargs: Mapping[str, Any], groups: ParameterGroups | None
    ) -> None:
        """Build the optimizer, and the scheduler again with it."""
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
            raise ConfigurationError(
                f"set_optimizer expects an Optimizer class such as torch.optim.AdamW, received "
                f"{describe(cls)}: pass the class and its arguments."
            )
        if issubclass(cls, LBFGS):
            raise ConfigurationError(
                "LBFGS evaluates the loss several times per step, which fit does not do: call it "
                "in a set_train_step function that returns StepOutput(loss, backward=False)."
            )
        parameters = list(self.module.parameters() if groups is None else groups(self.module))
        if not parameters:
            raise ConfigurationError(
                f"{type(self.module).__name__} has no parameters, so there is nothing to optimize."
            )
        # cloned for checkpoints: a scheduler changes a learning rate that is a tensor in place
        self.optimizer_spec = ComponentSpec(cls, map_tensors(Tensor.clone, dict(kwargs)))
        built = ComponentSpec(cls, dict(kwargs)).build(parameters)
        if has_modes(built):  # before it has a state, with which it would move the parameters
            built.train()
        self.optimizer = built
        self.built_options = options_of(self.optimizer)
        self._build_scheduler()

    def set_scheduler(
        self, cls: type[Any], kwargs: Mapping[str, Any], interval: str, monitor: str | None
    ) -> None:
        """Build the scheduler, as soon as there is an optimizer."""
        if not (isinstance(cls, type) and issubclass(cls, LRScheduler)):
            raise ConfigurationError(
                f"set_scheduler expects a scheduler class such as "
                f"torch.optim.lr_scheduler.CosineAnnealingLR, received {describe(cls)}: pass the "
                f"class and its arguments without the optimizer."
            )
        require_interval(cls, interval, monitor)
        if self.optimizer is not None and not are_schedulers_of(self.optimizer, kwargs):
            raise _replaced_optimizer(cls)
        self.scheduler_spec = ComponentSpec(cls, dict(kwargs))
        self.scheduler_interval, self.scheduler_monitor = interval, monitor
        self._build_scheduler()

    def _build_scheduler(self) -> None:
        """Build the scheduler unless its parts belong to an optimizer that was replaced."""
        spec, optimizer = self.scheduler_spec, self.optimizer
        self.scheduler = self.scheduler_start = None
        if spec is None or optimizer is None or not are_schedulers_of(optimizer, spec.kwargs):
            return
        self.scheduler = spec.build_for("optimizer", optimizer)
        self.scheduler_start = SchedulerStart.of(self.scheduler, optimizer)

    def set_loss(
        self, function: Any, pass_epoch: bool, kwargs: Mapping[str, Any], weight: Any = None
    ) -> None:
        """Set the loss; a class is built with ``kwargs``, a function is called with them."""
        if isinstance(function, type):
            function, kwargs = ComponentSpec(function, kwargs).build(), {}
        if not callable(function):
            raise ConfigurationError(
                f"set_loss_fn expects a function (outputs, targets) -> loss or a loss module, "
                f"received {describe(function)}."
            )
        if isinstance(function, nn.Module):
            function = function.to(self.device)
        loss = LossSpec(function, bool(pass_epoch), dict(kwargs), weight)
        loss_weight(loss)
        self.loss = loss

    # ---- what training uses ---------------------------------------------------------------------

    @property
    def trained_modules(self) -> TrainedModules:
        """The model, and the loss that was set, if it is a module with a state of its own."""
        loss = None if self.loss is None else self.loss.function
        # torch's own have no modes and no parameters, and their buffers are their arguments
        if not isinstance(loss, nn.Module) or type(loss).__module__ == TORCH_LOSSES:
            loss = None
        return TrainedModules(self.module, loss)

    @property
    def loss_in_use(self) -> LossSpec | None:
        """The loss that was set, or else denoising score matching if there is an SDE."""
        matching = self.generative.matching
        if self.loss is not None or matching is None:
            return self.loss
        return LossSpec(matching)

    @property
    def has_model_loss(self) -> bool:
        """Whether the loss is the one that the model itself may compute from labels."""
        has_other = self.loss_in_use is not None or self.train_step is not None
        return not has_other and takes_labels(self.module)

    def require_trainable(self) -> None:
        """Raise ``ConfigurationError`` if there is no training step, and no loss or optimizer."""
        spec, optimizer = self.scheduler_spec, self.optimizer
        if spec and optimizer is not None and not are_schedulers_of(optimizer, spec.kwargs):
            raise _replaced_optimizer(spec.cls)
        if self.train_step is not None:
            return
        for part, name, setter in (
            (self.loss_in_use or self.has_model_loss or None, "loss function", "set_loss_fn"),
            (self.optimizer, "optimizer", "set_optimizer"),
        ):
            if part is None:
                raise ConfigurationError(
                    f"no {name} is set: call handler.{setter}(...) before fit."
                )

    def learning_rate(self) -> float | None:
        """The learning rate of the first parameter group."""
        if self.optimizer is None:
            return None
        return float(self.optimizer.param_groups[0]["lr"])

    def compile(self, options: Mapping[str, Any]) -> None:
        """Call model and loss through ``torch.compile`` from now on; weights stay the module's.

        Both are one function, so that torch compiles their backward pass as one function too.
        """
        if options != self._compile_options:
            self._compile_options, self._compiled_optimizer = dict(options), None
            self.model = compiled(self.module, options)
            self._compiled_loss = compiled(self._loss_and_outputs, options)

    def _loss_and_outputs(self, arguments: Any, targets: Any) -> tuple[Tensor, Any]:
        args, kwargs = arguments
        outputs = self.module(*args, **kwargs)
        return self.loss.function(outputs, targets, **self.loss.kwargs), outputs  # type: ignore[union-attr]

    @property
    def compiled_loss(self) -> Callable[[Any, Any], tuple[Tensor, Any]] | None:
        """``((args, kwargs), targets) -> (loss, outputs)``; ``None``: only the model is compiled.

        A loss that is given the epoch would be compiled again for each epoch.
        """
        return None if self.loss is None or self.loss.pass_epoch else self._compiled_loss

    def compile_optimizer(self) -> CompiledOptimizer | None:
        """The optimizer with compiled steps; ``None`` where compiling them gains nothing."""
        if self.optimizer is None or not is_worth_compiling(self.optimizer, self.scheduler):
            return None
        current = self._compiled_optimizer
        if current is None or current.optimizer is not self.optimizer:
            current = CompiledOptimizer(self.optimizer, self._compile_options or {})
            self._compiled_optimizer = current
        return current


def _replaced_optimizer(scheduler_class: type[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"{scheduler_class.__name__} is composed of schedulers of another optimizer than the "
        f"handler's, so they would schedule nothing: build them with handler.optimizer after "
        f"set_optimizer, then call set_scheduler."
    )
