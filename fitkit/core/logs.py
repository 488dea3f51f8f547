"""Logs: the values that hooks receive, read-only, converted to floats when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.core.is_tensor import is_tensor


def as_float(name: str, value: Any) -> float:
    """``value`` (a number or a tensor of one element) as a float.

    Only here do logged tensors become floats, which synchronizes with their device.
    """
    if is_tensor(value):
        value = value.detach()
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _not_a_number(name, type(value).__name__) from error


def as_loggable(name: str, value: Any) -> Any:
    """``value`` as a float, or as a tensor of one element, which is not read yet.

    Raises:
        ConfigurationError: it is not one number.
    """
    if not is_tensor(value):
        return as_float(name, value)
    is_number = value.numel() == 1 and str(value.layout) == "torch.strided"
    if not is_number or value.is_complex() or value.is_meta:
        kind = f"{value.dtype} on {value.device}".removeprefix("torch.")
        raise _not_a_number(name, f"a tensor of shape {tuple(value.shape)}, {kind}")
    return value.detach().clone()  # the callback may change its own in place


def _not_a_number(name: str, received: str) -> ConfigurationError:
    return ConfigurationError(
        f"the log value {name!r} must be one number (a float, an int or a tensor of one element), "
        f"received {received}: reduce it before logging it."
    )


class Logs(Mapping[str, float]):
    """A read-only mapping of named values.

    Values may be tensors on a device, or functions that compute them; each becomes a float when it
    is first read, so a hook that reads nothing does not synchronize with the device. They are the
    same bits on all ranks; only ``of_this_rank`` is not.

    >>> logs = Logs({"loss": 0.5})
    >>> logs["loss"], dict(logs)
    (0.5, {'loss': 0.5})
    """

    __slots__ = ("_floats", "_own", "_values")

    def __init__(
        self, values: Mapping[str, Any] | None = None, own: Mapping[str, Any] | None = None
    ) -> None:
        self._values: Mapping[str, Any] = {} if values is None else values
        self._own = self._values if own is None else own
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
        """The value as it was logged; a tensor stays on its device, without synchronization."""
        value = self._values[name]
        return value() if isinstance(value, Deferred) else value

    @property
    def of_this_rank(self) -> Mapping[str, Any]:
        """The values of this rank's share of a batch, as they were logged."""
        return self._own

    def copy(self) -> dict[str, float]:
        """The values as a new dict."""
        return dict(self)


class Deferred(partial[Any]):
    """A value that is computed when it is read, by calling it."""


EMPTY_LOGS = Logs()
