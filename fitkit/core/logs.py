"""Logs: what a hook is told, read-only, converted to floats only when somebody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from fitkit.core.errors import ConfigurationError, did_you_mean, listed


def as_float(name: str, value: Any) -> float:
    """``value`` (a number or a tensor of one element) as a plain float.

    Reading a tensor on an accelerator waits for it.
    """
    if isinstance(value, Tensor):
        value = value.detach()
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"the log value {name!r} must be one number (a float, an int or a tensor of one "
            f"element), received {type(value).__name__}: reduce it before logging it."
        ) from error


class Logs(Mapping[str, float]):
    """A read-only view of named values.

    Values may be tensors that still live on a device, or functions that compute them; each is
    turned into a float the first time it is read, so a hook that reads nothing costs no
    synchronisation.

    >>> logs = Logs({"loss": 0.5})
    >>> logs["loss"], dict(logs)
    (0.5, {'loss': 0.5})
    """

    __slots__ = ("_floats", "_values")

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: Mapping[str, Any] = {} if values is None else values
        self._floats: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        try:
            value = self._values[name]
        except KeyError:
            raise KeyError(
                f"{name!r} is not in the logs, which hold {listed(self._values)}."
                + did_you_mean(str(name), self._values)
            ) from None
        if type(value) is float:
            return value
        if name not in self._floats:
            computed = value() if isinstance(value, Deferred) else value
            self._floats[name] = as_float(name, computed)
        return self._floats[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Logs({dict(self)!r})"

    def raw(self, name: str) -> Any:
        """The value as it was logged: a tensor stays on its device, so reading it does not wait.

        Raises:
            KeyError: the name is not in the logs.
        """
        value = self._values[name]
        return value() if isinstance(value, Deferred) else value

    def copy(self) -> dict[str, float]:
        """A plain dict of the values, which may be changed."""
        return dict(self)


class Deferred:
    """A value that is computed when it is read."""

    __slots__ = ("_compute",)

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute

    def __call__(self) -> Any:
        """The value, computed now."""
        return self._compute()


EMPTY_LOGS = Logs()
