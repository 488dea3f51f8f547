"""Build the model of a handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fitkit.core.component_spec import ComponentSpec
from fitkit.core.errors import ConfigurationError, describe, listed

Place = Callable[[Callable[[], nn.Module]], nn.Module]


def build_model(
    model: Any, kwargs: Mapping[str, Any], place: Place = lambda build: build()
) -> tuple[ComponentSpec | None, nn.Module]:
    """The model that a handler is given, and how it was built.

    Args:
        model: a module class, or a ready module.
        kwargs: arguments of the class.
        place: builds the module where it is to be, by the function that it is given.

    Returns:
        class and arguments, ``None`` for a ready module; and the module.

    Raises:
        ConfigurationError: it is neither, or a ready module has arguments.
    """
    if isinstance(model, nn.Module):
        if kwargs:
            raise ConfigurationError(
                f"model_class is a ready {type(model).__name__}, so it takes no further arguments; "
                f"received {listed(kwargs)}. Pass the class, or leave them out."
            )
        return None, place(lambda: model)
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise ConfigurationError(
            f"model_class must be a torch.nn.Module subclass or a ready module, received "
            f"{describe(model)}."
        )
    spec = ComponentSpec(model, dict(kwargs))
    return spec, place(spec.build)
