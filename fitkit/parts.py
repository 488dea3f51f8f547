"""What a handler is made of: each part as the user described it, and as it was built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.compiled_steps import CompiledSteps, compiled, is_worth_compiling, remember_flags
from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.core.tree import map_tensors
from fitkit.core.types import ModelType
from fitkit.data.batches import call_model
from fitkit.data.loaders import DataSpec
from fitkit.engine.schedule import check_interval

ParameterGroups = Callable[[nn.Module], Iterable[Any]]


@dataclass(frozen=True)
class Described:
    """A class with its keyword arguments."""

    cls: type[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *args: Any) -> Any:
        """An instance.

        Raises:
            ConfigurationError: the class does not take these arguments.
        """
        try:
            inspect.signature(self.cls).bind(*args, **self.kwargs)
        except TypeError as error:
            names = [name for name in inspect.signature(self.cls).parameters if name != "params"]
            wrong = [name for name in self.kwargs if name not in names]
            raise ConfigurationError(
                f"{self.cls.__name__} cannot be built with the arguments {listed(self.kwargs)}: "
                f"{error}. It takes {listed(names)}."
                + (did_you_mean(wrong[0], names) if wrong else "")
            ) from error
        except ValueError:  # a class without a signature, as some built in C are
            pass
        return self.cls(*args, **self.kwargs)


@dataclass(frozen=True)
class LossSpec:
    """A loss function with what it is called with besides outputs and targets."""

    function: Callable[..., Any]
    pass_epoch: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, epoch: Callable[[], int]) -> Callable[..., Any]:
        """The function to call with outputs and targets alone."""
        function, kwargs = self.function, dict(self.kwargs)
        if self.pass_epoch:
            return lambda *args: function(*args, epoch=epoch(), **kwargs)
        if kwargs:
            return lambda *args: function(*args, **kwargs)
        return function


class Parts:
    """The parts of one handler. Setters may come in any order; what needs another waits for it.

    Attributes:
        module: the model without wrappers.
        model: the model as it is called in evaluation.
        wrapped: the model as it is called in training by several processes, while they train.
        model_spec: class and arguments of the model, ``None`` for a ready module.
        model_type: how a batch becomes a loss.
        device: where the model is.
    """

    def __init__(
        self, model: Any, kwargs: Mapping[str, Any], model_type: ModelType, device: torch.device
    ) -> None:
        self.model_type = model_type
        self.device = device
        self.model_spec, module = _build_model(model, kwargs)
        self.module = module.to(device)
        self.model: nn.Module = self.module
        self.wrapped: nn.Module | None = None
        self._compiled: Callable[[Any, Any], tuple[Tensor, Any]] | None = None
        self._compile_options: Mapping[str, Any] | None = None
        self._steps: CompiledSteps | None = None
        self.optimizer_spec: Described | None = None
        self.parameter_groups: ParameterGroups | None = None
        self.optimizer: Optimizer | None = None
        self.scheduler_spec: Described | None = None
        self.scheduler_interval = "epoch"
        self.scheduler_monitor: str | None = None
        self.scheduler: LRScheduler | None = None
        self.loss: LossSpec | None = None
        self.default_loss: LossSpec | None = None
        self.train_data: DataSpec | None = None
        self.validation_data: DataSpec | None = None
        self.metrics: dict[str, Any] = {}
        self.train_step: Callable[..., Any] | None = None
        self.evaluation_step: Callable[..., Any] | None = None

    def remember(self) -> Callable[[], None]:
        """A function that puts back the parts that are set now, as they will be then."""
        before = {**vars(self), "metrics": dict(self.metrics)}
        put_flags_back = remember_flags(self.optimizer)

        def put_back() -> None:
            vars(self).update(before)
            put_flags_back()

        return put_back

    def compile(self, options: Mapping[str, Any]) -> None:
        """Call model and loss through ``torch.compile`` from now on; weights stay the module's.

        They are one function, so that torch compiles the backward pass of both as another.
        """
        if options != self._compile_options:
            self._compile_options, self._steps = dict(options), None
            self.model = compiled(self.module, options)
            self._compiled = compiled(self._loss_and_outputs, options)

    @property
    def compiled_loss(self) -> Callable[[Any, Any], tuple[Tensor, Any]] | None:
        """``(inputs, targets) -> (loss, outputs)``; ``None`` where only the model is compiled.

        A loss that is given the epoch would be compiled anew for each.
        """
        return None if self.loss is None or self.loss.pass_epoch else self._compiled

    def _loss_and_outputs(self, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
        outputs = call_model(self.module, inputs)
        return self.loss.function(outputs, targets, **self.loss.kwargs), outputs  # type: ignore[union-attr]

    def compiled_optimizer(self, options: Mapping[str, Any]) -> CompiledSteps | None:
        """Steps of the optimizer through ``torch.compile``; ``None`` where that gains nothing."""
        if self.optimizer is None or not is_worth_compiling(self.optimizer, self.scheduler):
            return None
        if self._steps is None or self._steps.optimizer is not self.optimizer:
            self._steps = CompiledSteps(self.optimizer, options)
        return self._steps

    def set_optimizer(
        self, cls: type[Any], kwargs: Mapping[str, Any], groups: ParameterGroups | None
    ) -> None:
        """Build the optimizer, and the scheduler anew upon it."""
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
            raise ConfigurationError(
                f"set_optimizer expects an Optimizer class such as torch.optim.AdamW, received "
                f"{_kind(cls)}: pass the class and its arguments."
            )
        if issubclass(cls, LBFGS):
            raise ConfigurationError(
                "LBFGS evaluates the loss several times per step, which the loop does not do: call "
                "it in a set_train_step function that returns StepOutput(loss, backward=False)."
            )
        parameters = list(self.module.parameters() if groups is None else groups(self.module))
        if not parameters:
            raise ConfigurationError(
                f"{type(self.module).__name__} has no parameters, so there is nothing to optimize."
            )
        # a scheduler changes a learning rate that is a tensor in place
        self.optimizer_spec = Described(cls, map_tensors(Tensor.clone, dict(kwargs)))
        self.optimizer = Described(cls, dict(kwargs)).build(parameters)
        self.parameter_groups = groups
        self._build_scheduler()

    def set_scheduler(
        self, cls: type[Any], kwargs: Mapping[str, Any], interval: str, monitor: str | None
    ) -> None:
        """Remember the scheduler; it is built as soon as there is an optimizer."""
        if not (isinstance(cls, type) and issubclass(cls, LRScheduler)):
            raise ConfigurationError(
                f"set_scheduler expects a scheduler class such as "
                f"torch.optim.lr_scheduler.CosineAnnealingLR, received {_kind(cls)}: pass the "
                f"class and its arguments without the optimizer."
            )
        check_interval(cls, interval, monitor)
        self.scheduler_spec = Described(cls, dict(kwargs))
        self.scheduler_interval, self.scheduler_monitor = interval, monitor
        self._build_scheduler()

    def _build_scheduler(self) -> None:
        self.scheduler = None
        if self.scheduler_spec is not None and self.optimizer is not None:
            self.scheduler = self.scheduler_spec.build(self.optimizer)

    def set_loss(self, function: Any, pass_epoch: bool, kwargs: Mapping[str, Any]) -> None:
        """Remember the loss; a class is built with ``kwargs``, a function called with them."""
        if isinstance(function, type):
            function, kwargs = Described(function, kwargs).build(), {}
        if not callable(function):
            raise ConfigurationError(
                f"set_loss_fn expects a function (outputs, targets) -> loss or a loss module, "
                f"received {_kind(function)}."
            )
        if isinstance(function, nn.Module):
            function = function.to(self.device)
        self.loss = LossSpec(function, bool(pass_epoch), dict(kwargs))

    def set_default_loss(self, function: Callable[..., Any] | None) -> None:
        """Remember the loss of models for which none is set."""
        self.default_loss = None if function is None else LossSpec(function)

    @property
    def loss_in_use(self) -> LossSpec | None:
        """The loss that was set, or the default one."""
        return self.default_loss if self.loss is None else self.loss

    def require_trainable(self) -> None:
        """Fail, naming the setter, if something that training needs is missing.

        Raises:
            ConfigurationError: it is.
        """
        if self.train_step is not None:
            return
        for part, setter in ((self.loss_in_use, "set_loss_fn"), (self.optimizer, "set_optimizer")):
            if part is None:
                name = "loss function" if setter == "set_loss_fn" else "optimizer"
                raise ConfigurationError(
                    f"no {name} is set: call handler.{setter}(...) before fit."
                )

    def learning_rate(self) -> float | None:
        """The learning rate of the first parameter group."""
        if self.optimizer is None:
            return None
        return float(self.optimizer.param_groups[0]["lr"])


def _build_model(model: Any, kwargs: Mapping[str, Any]) -> tuple[Described | None, nn.Module]:
    if isinstance(model, nn.Module):
        if kwargs:
            raise ConfigurationError(
                f"model_class is a ready {type(model).__name__}, so it takes no further arguments; "
                f"received {listed(kwargs)}. Pass the class, or leave them out."
            )
        return None, model
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise ConfigurationError(
            f"model_class must be a torch.nn.Module subclass or a ready module, received "
            f"{_kind(model)}."
        )
    spec = Described(model, dict(kwargs))
    module: nn.Module = spec.build()
    return spec, module


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
