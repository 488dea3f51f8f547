"""Types that come back from a checkpoint as they were: enums, named tuples, NumPy scalars, ...

Each is a tagged dict of plain types. Its content is encoded and decoded by ``encoding.py``.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from types import MappingProxyType
from typing import Any

import numpy as np

from fitkit.checkpointing.format.class_names import class_name, resolve_class
from fitkit.core.errors import CheckpointError

Content = dict[str, Any]

_FACTORIES: Mapping[str, type] = {
    kind.__name__: kind for kind in (bool, bytes, complex, dict, float, int, list, set, str, tuple)
}
_REMEDY = "define or import it before the callback is attached, or load with skip_callbacks=True"


class NotExactError(Exception):
    """Why a value would not come back as it is."""


def to_content(value: Any) -> tuple[str, Content] | None:
    """The tag and the content of a value; ``None`` if it is of none of these types.

    Raises:
        NotExactError: it is of one of these types, but would not come back as it is.
    """
    if isinstance(value, Enum):
        return "enum", {"class": _name_of(type(value), Enum), **_member(value)}
    if isinstance(value, np.generic):
        return _scalar(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        if getattr(value, "__dict__", None):
            raise NotExactError("has attributes besides its fields, which would be lost")
        fields = dict(zip(value._fields, value, strict=True))
        return "namedtuple", {"class": _name_of(type(value), tuple), "fields": fields}
    if type(value) is defaultdict:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            raise NotExactError(
                f"has the default factory {factory!r}, but a checkpoint can name only built-in "
                f"types, such as list and int"
            )
        return "defaultdict", {"factory": name, "items": dict(value)}
    if type(value) in (datetime.date, datetime.time, datetime.datetime):
        return _moment(value)
    return None


def _name_of(cls: type, kind: type) -> str:
    name = class_name(cls)
    try:
        is_found = resolve_class(name, kind, "", search_subclasses=False) is cls
    except CheckpointError:
        is_found = False
    if not is_found:
        raise NotExactError(
            f"is of the class {cls.__qualname__}, which a resume could not find by its name: "
            f"define it at the top level of a module or script"
        )
    return name


def _member(value: Enum) -> Content:
    if type(value).__members__.get(value.name) is value:
        return {"name": value.name}
    return {"value": value.value}  # of several flags, or of none


def _scalar(value: np.generic[Any]) -> tuple[str, Content]:
    if value.dtype.kind in "US":
        return "scalar", {"data": value.item(), "dtype": value.dtype.kind}
    if value.dtype.kind in "mM":
        return "scalar", {"data": value.view(np.int64).item(), "dtype": str(value.dtype)}
    if not is_storable(value.dtype):
        raise NotExactError(f"is a numpy.{value.dtype.name}, which torch lacks: save a float")
    return "scalar", {"data": value.item(), "dtype": str(value.dtype)}


def is_storable(dtype: np.dtype[Any]) -> bool:
    """Whether torch has the same type: a boolean or a number of at most 64 bits, or two of them."""
    return (
        dtype.itemsize <= 8 if dtype.kind in "biuf" else dtype.kind == "c" and dtype.itemsize <= 16
    )


def _moment(value: Any) -> tuple[str, Content]:
    tag, iso = type(value).__name__, value.isoformat()
    back = type(value).fromisoformat(iso)
    if any(getattr(back, part, 0) != getattr(value, part, 0) for part in ("tzinfo", "fold")):
        raise NotExactError(
            "has a time zone or fold that would be lost: convert it to datetime.timezone.utc"
        )
    return tag, {"iso": iso}


def _to_enum(content: Content) -> Enum:
    cls: Any = resolve_class(content["class"], Enum, _REMEDY, search_subclasses=False)
    if "value" in content and issubclass(cls, Flag):
        combined: Enum = cls(content["value"])
        return combined
    if content["name"] not in cls.__members__:
        raise ValueError(f"{cls.__qualname__} has no member {content['name']!r} any more")
    member: Enum = cls.__members__[content["name"]]
    return member


def _to_namedtuple(content: Content) -> Any:
    cls: Any = resolve_class(content["class"], tuple, _REMEDY, search_subclasses=False)
    fields, expected = content["fields"], getattr(cls, "_fields", ())
    if set(fields) != set(expected):
        raise ValueError(f"{cls.__qualname__} has the fields {expected}, saved were {(*fields,)}")
    return tuple.__new__(cls, [fields[name] for name in expected])


def _to_scalar(content: Content) -> Any:
    data, dtype = content["data"], np.dtype(content["dtype"])
    if dtype.kind in "mM":
        return np.int64(data).view(dtype)
    if dtype.kind not in "US" and not is_storable(dtype):
        raise ValueError(f"a number of the type {content['dtype']!r}")
    return dtype.type(data)


FROM_CONTENT: Mapping[str, Callable[[Content], Any]] = MappingProxyType(
    {
        "enum": _to_enum,
        "namedtuple": _to_namedtuple,
        "scalar": _to_scalar,
        "defaultdict": lambda content: defaultdict(
            None if content["factory"] is None else _FACTORIES[content["factory"]], content["items"]
        ),
        "date": lambda content: datetime.date.fromisoformat(content["iso"]),
        "time": lambda content: datetime.time.fromisoformat(content["iso"]),
    }
)
