"""``torch.compile``: its options, checked, and an optimizer whose steps go through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.handler.optimizer_state import move_counters

# What ``fit(compile={...})`` takes: the name of an option, how its type is called, and the test.
_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "backend": ("a name or a function", lambda value: isinstance(value, str) or callable(value)),
    "disable": ("a bool", lambda value: isinstance(value, bool)),
    "dynamic": ("a bool or None", lambda value: value is None or isinstance(value, bool)),
    "fullgraph": ("a bool", lambda value: isinstance(value, bool)),
    "mode": ("a string or None", lambda value: value is None or isinstance(value, str)),
    "options": ("a dict or None", lambda value: value is None or isinstance(value, dict)),
}


def require_compile_options(value: Any) -> None:
    """Raise ``ConfigurationError`` unless ``value`` is a bool or options of ``torch.compile``."""
    if isinstance(value, bool):
        return
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"compile must be True, False or a dict of options of torch.compile, received "
            f"{value!r}: pass for instance {{'mode': 'reduce-overhead'}}."
        )
    for name, given in value.items():
        if name not in _OPTIONS:
            raise ConfigurationError(
                f"compile takes the options {listed(_OPTIONS)} of torch.compile, received "
                f"{name!r}: leave it out." + did_you_mean(str(name), _OPTIONS)
            )
        kind, fits = _OPTIONS[name]
        if not fits(given):
            raise ConfigurationError(
                f"compile[{name!r}] must be {kind}, as torch.compile documents it, received "
                f"{given!r}."
            )
    try:
        compiled(lambda: None, value)  # torch checks the values of options before it compiles
    except Exception as error:
        raise ConfigurationError(
            f"torch.compile does not take compile={value!r}: {str(error)[:200]} Pass options as "
            f"torch.compile documents them."
        ) from error


def compiled(function: Any, options: Mapping[str, Any]) -> Any:
    """``torch.compile(function, **options)``; ``options`` are not changed."""
    # torch takes entries out of the inner dict
    copied: dict[str, Any] = {
        name: dict(value) if isinstance(value, dict) else value for name, value in options.items()
    }
    return torch.compile(function, **copied)


class CompiledOptimizer:
    """An optimizer whose ``step`` goes through ``torch.compile``.

    Of the options of ``fit(compile=...)`` only ``backend`` and ``disable`` are used. A step is not
    one graph, as ``fullgraph`` demands, and CUDA graphs of its own (``mode``) would free the
    outputs of the model, which metrics read after the step.
    """

    def __init__(self, optimizer: Optimizer, options: Mapping[str, Any]) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            # torch's compiler does so before a first step, but not after a resume
            if "capturable" in group and all(p.is_cuda or p.is_xpu for p in group["params"]):
                group["capturable"] = True
                for parameter in group["params"]:
                    move_counters(optimizer.state.get(parameter, {}), parameter.device)
        used = {name: options[name] for name in ("backend", "disable") if name in options}
        self.step = compiled(optimizer.step, used)


def is_worth_compiling(optimizer: Optimizer, scheduler: LRScheduler | None) -> bool:
    """Whether compiled steps of ``optimizer`` give the same values, and faster.

    torch's optimizers with a flag ``capturable`` were made for it. A learning rate that is no
    tensor is a constant of the compiled code, so a scheduler would have each value compiled anew.
    """
    groups = optimizer.param_groups
    is_of_torch = type(optimizer).__module__.startswith("torch.optim.")
    is_fixed = scheduler is None or all(isinstance(group["lr"], Tensor) for group in groups)
    return is_of_torch and is_fixed and all("capturable" in group for group in groups)


def make_capturable_undo(optimizer: Optimizer | None) -> Callable[[], None]:
    """A function that puts back the flags that ``CompiledOptimizer`` sets in an optimizer."""
    groups = [] if optimizer is None else optimizer.param_groups
    flags = [(group, group["capturable"]) for group in groups if "capturable" in group]

    def undo() -> None:
        for group, capturable in flags:
            group["capturable"] = capturable

    return undo
