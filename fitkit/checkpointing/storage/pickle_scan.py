"""Look through the pickle of a file before torch reads it.

``torch.load(weights_only=True)`` runs no code, but a small file can make it hash one key for years,
overflow the interpreter's stack, or allocate terabytes.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from fitkit.checkpointing.storage.pickle_machine import PickleMachine
from fitkit.checkpointing.storage.pickle_values import (
    DTYPE_BYTES,
    HARMLESS_KEYS,
    ITEM_BYTES,
    Dict,
    Sizes,
    Storage,
    Tensor,
    TrapError,
    Walk,
)
from fitkit.core.pause_gc import pause_gc

# Tensors may share memory, so together they may be larger than the file, within reason.
_SHARED_TIMES, _SHARED_BYTES = 64, 256 << 20
_SHARED_VALUES = 1_500_000  # of lists and dicts that are used many times
_MAX_KEY_PARTS = 1000  # values in a key that is a tuple
_MAX_EQUAL_HASHES = 100  # more keys with one hash are made to make a dict slow
_STEPS_PER_BYTE = 8  # of work for operations whose arguments may be used again and again

_REBUILD, _VIEWS = "torch._utils._rebuild_", ("tensor", "tensor_v2", "tensor_v3", "qtensor")


def check_pickle(
    data: bytes,
    record_bytes: Mapping[str, int],
    file_bytes: int,
    *,
    levels: int = 0,
    torch_follows: bool = True,
) -> Any:
    """Check that torch can read a pickle with time and memory that its file is worth.

    Args:
        data: the pickle, of protocol 2 as ``torch.save`` writes it.
        record_bytes: the sizes of the records with the memory of its tensors, by their keys.
        file_bytes: the size of all records.
        levels: in how many dicts ``data`` breaks off; 0: it is whole.
        torch_follows: torch reads it afterwards, and refuses names that it does not know; else they
            are refused here.

    Returns:
        what it describes, as values of ``pickle_values``.

    Raises:
        TrapError: it would exhaust memory, time or the stack, now or when it is used.
        pickle.UnpicklingError: it has operations or calls that no checkpoint needs.
        Exception: of another kind, if it is not a valid pickle.
    """
    steps = 100_000 + _STEPS_PER_BYTE * len(data)
    checks = _Checks(record_bytes, steps, file_bytes, torch_follows)
    max_values = _SHARED_VALUES + 2 * len(data)
    with pause_gc():
        machine = PickleMachine(data, checks)
        content = machine.run_beginning(levels) if levels else machine.run()
        Walk(max_values, _SHARED_BYTES + _SHARED_TIMES * file_bytes).measure([content])
    return content


class _Checks:
    """What the pickle may do, and how much is left of what it may take."""

    def __init__(
        self,
        record_bytes: Mapping[str, int],
        steps: int,
        file_bytes: int,
        torch_follows: bool = True,
    ) -> None:
        self._record_bytes = record_bytes
        self._torch_follows = torch_follows
        self._steps_left = steps
        self._bytes_left = _SHARED_BYTES + _SHARED_TIMES * file_bytes
        self._storages: dict[bytes, Storage] = {}
        self._hashes: Counter[tuple[int, int]] = Counter()

    def spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise TrapError("it would take far more time to read than its size is worth")

    def _claim(self, num_bytes: int) -> None:
        """Count values of tensors each time that torch reads them."""
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise TrapError("its tensors claim far more memory than the file has")

    def check_keys(self, keys: Sequence[Any], target: Any) -> None:
        for key in keys:
            if type(key) in HARMLESS_KEYS:
                continue
            num_parts, num_bytes = _measure_key(key)
            self.spend(num_parts // 8)
            target.num_bytes += num_bytes
            if isinstance(key, bytes):
                continue
            place = id(target), _hash(key)
            self._hashes[place] += 1
            if self._hashes[place] > _MAX_EQUAL_HASHES:
                raise TrapError("its keys are made to have one hash")

    def load_storage(self, description: Any) -> Storage:
        _, kind, key, _, num_elements = description
        item_bytes = ITEM_BYTES.get(kind.removeprefix("torch.").removesuffix("Storage"), 1)
        storage = Storage(key, kind, num_elements, item_bytes)
        if self._storages.setdefault(key, storage) != storage:
            raise TrapError("two of its tensors do not agree on their memory")
        if not 0 <= num_elements * item_bytes <= self._record_bytes.get(key.decode(), -1):
            raise TrapError("a tensor claims more memory than the file has")
        return storage

    def name(self, name: str) -> str:
        is_known = self._torch_follows or name.startswith("torch.") or name in self._calls
        if not is_known and not _is_allowed_by_program(name):
            raise pickle.UnpicklingError(f"it names {name}.")
        return name

    def call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not str or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls something that is no function.")
        for argument in arguments:
            if isinstance(argument, (tuple, list, bytes)):
                self._steps_left -= len(argument)
        self.spend(0)
        known = self._calls.get(function)
        if known is not None:
            return known(self, *arguments)
        if function.startswith("torch.") and not _is_allowed_by_program(function):
            raise pickle.UnpicklingError(f"it calls {function}.")
        return None  # torch refuses it, unless the program allows it

    # ---- calls ----

    def _rebuild_tensor(
        self, storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any
    ) -> Tensor:
        """A view of a storage, which torch would enlarge for a view that is larger."""
        size = storage.item_bytes
        if len(rest) > 2:  # which has another type than its storage
            size = DTYPE_BYTES.get(str(rest[2]).rpartition(".")[2], 1)
        if len(shape) != len(stride) or min(offset, *shape, *stride, 0) < 0:
            raise TrapError("a tensor has no valid shape")
        end, num_elements = offset + 1, prod(shape)
        for length, step in zip(shape, stride, strict=True):
            end += (length - 1) * step
        if num_elements and end * size > storage.num_elements * storage.item_bytes:
            raise TrapError("a tensor is larger than its memory")
        return Tensor((), num_elements * size)

    def _rebuild_of_tensors(self, *arguments: Any) -> Tensor:
        """A sparse tensor, or one for another device: torch reads the values of its parts."""
        parts = [part for one in arguments for part in (one if type(one) is tuple else [one])]
        tensor = Tensor(parts)
        self._claim(tensor.num_bytes)
        return tensor

    def _rebuild_with_attributes(self, *parts: Any) -> Tensor:
        return Tensor(parts)

    def _rebuild_subclass(self, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
        return Tensor([self.call(function, arguments), state])

    def _rebuild_without_values(self, *arguments: Any) -> Any:
        raise TrapError("it holds a tensor without values")

    def _encode_text(self, text: Any = b"", encoding: Any = b"latin1") -> bytes:
        """Bytes, as pickle writes them; other encodings could double them again and again."""
        if not isinstance(text, bytes) or encoding not in (b"latin1", b"latin-1"):
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r}.")
        return text

    def _make_complex(self, *parts: float) -> complex:
        return complex(*parts)

    def _make_plain(self, *parts: Any) -> None:
        """A device or a layout."""

    def _make_dict(self, items: Sequence[Any] = ()) -> Dict:
        """An ordered dict."""
        is_dict = type(items) is Dict
        made = Dict(items if is_dict else [part for key, value in items for part in (key, value)])
        self.check_keys(made[::2], made)
        return made

    def _make_counter(self, items: Sequence[Any] = ()) -> Dict:
        """A counter of counts, or one that counts items."""
        return self._make_dict(items) if type(items) is Dict else self._make_set(items)

    def _make_set(self, items: Iterable[Any] = ()) -> Dict:
        return self._make_dict([(item, None) for item in items])

    # what torch may call, of what it knows; classes of tensors and storages would allocate
    _calls: Mapping[str, Callable[..., Any]] = MappingProxyType(
        {
            **dict.fromkeys([_REBUILD + kind for kind in _VIEWS], _rebuild_tensor),
            _REBUILD + "sparse_tensor": _rebuild_of_tensors,
            _REBUILD + "device_tensor_from_cpu_tensor": _rebuild_of_tensors,
            _REBUILD + "meta_tensor_no_storage": _rebuild_without_values,
            _REBUILD + "parameter": _rebuild_with_attributes,
            _REBUILD + "parameter_with_state": _rebuild_with_attributes,
            "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
            **dict.fromkeys(["torch.serialization._get_layout", "torch.device"], _make_plain),
            "torch.Size": lambda _, sizes=(): Sizes(sizes),
            **dict.fromkeys(["_codecs.encode", "builtins.bytearray"], _encode_text),
            "builtins.complex": _make_complex,
            "builtins.set": _make_set,
            "collections.OrderedDict": _make_dict,
            "collections.Counter": _make_counter,
        }
    )


def _measure_key(key: Any) -> tuple[int, int]:
    """How many values must be read for the hash of a key, and how many bytes it takes to print."""
    pending: list[Any] = [key]
    num_parts = num_bytes = 0
    while pending:
        value = pending.pop()
        if type(value) is tuple:
            num_parts += 1 + len(value)
            if num_parts > _MAX_KEY_PARTS:
                raise TrapError("a key is made of more than a thousand values")
            pending += value
        num_bytes += len(value) if isinstance(value, bytes) else 8
    return num_parts, num_bytes


def _hash(key: Any) -> int:
    try:
        return hash(key)
    except TypeError:  # a list in a tuple, or as a key: torch raises the same
        return 0


def _is_allowed_by_program(function: str) -> bool:
    """Whether the program has told torch that files may call ``function``."""
    torch = sys.modules.get("torch")
    if torch is None:  # it can have told it nothing
        return False
    allowed = (one for one in torch.serialization.get_safe_globals() if not isinstance(one, tuple))
    return function in [f"{one.__module__}.{one.__qualname__}" for one in allowed]
