"""ComponentSpec and LossSpec: how to build a model, an optimizer, a scheduler or a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fitkit.core.errors import ConfigurationError, did_you_mean, listed


@dataclass(frozen=True)
class ComponentSpec:
    """A class and the keyword arguments to build it with."""

    cls: type[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *args: Any) -> Any:
        """Build an instance, or raise ``ConfigurationError`` if the class lacks an argument."""
        return self._build(args, {})

    def build_for(self, name: str, value: Any) -> Any:
        """Build an instance with ``value`` as the argument ``name``, else as the first one."""
        try:
            is_named = name in inspect.signature(self.cls).parameters
        except ValueError:  # some classes written in C have no signature
            is_named = False
        return self._build((), {name: value}) if is_named else self._build((value,), {})

    def _build(self, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        try:
            inspect.signature(self.cls).bind(*args, **more, **self.kwargs)
        except TypeError as error:
            hidden = {"params", *more}
            names = [n for n in inspect.signature(self.cls).parameters if n not in hidden]
            wrong = [name for name in self.kwargs if name not in names]
            raise ConfigurationError(
                f"{self.cls.__name__} cannot be built with the arguments {listed(self.kwargs)}: "
                f"{error}. It takes {listed(names)}."
                + (did_you_mean(wrong[0], names) if wrong else "")
            ) from error
        except ValueError:  # some classes written in C have no signature
            pass
        return self.cls(*args, **more, **self.kwargs)


@dataclass(frozen=True)
class LossSpec:
    """A loss function, its arguments besides outputs and targets, and what its mean is over."""

    function: Callable[..., Any]
    pass_epoch: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weight: Callable[[Any, Any], Any] | None = None

    def bound(self, epoch: Callable[[], int]) -> Callable[..., Any]:
        """The function of outputs and targets; ``epoch`` returns the current epoch."""
        if self.pass_epoch:
            return lambda *args: self.function(*args, epoch=epoch(), **self.kwargs)
        return partial(self.function, **self.kwargs) if self.kwargs else self.function


def unwrap_partial(function: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The function in a ``functools.partial``, with all arguments that are passed by name.

    Arguments by position come before outputs and targets, so such a partial is another function.
    """
    while isinstance(function, partial) and not function.args:
        function, kwargs = function.func, {**function.keywords, **kwargs}
    return function, kwargs
