"""Run the operations of a pickle on stand-ins: nothing that it describes is hashed or built.

A number stands for itself, a string for its bytes, the name of a global is a str, a dict is the
list of its keys and values, and ``None`` stands for every other value without parts.
"""

from __future__ import annotations

import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Dict(list[Any]):
    """Keys and values of a dict, in turn."""


class PickleChecks(Protocol):
    """What a machine asks about what the pickle does; each raises if it may not do that."""

    def call(self, function: Any, arguments: Any) -> Any:
        """The stand-in for what a call returns."""

    def load_storage(self, description: Any) -> Any:
        """The stand-in for the memory of tensors."""

    def check_keys(self, keys: Sequence[Any], target: Any) -> None:
        """Check that ``keys`` can be added to a dict."""

    def spend(self, steps: int) -> None:
        """Count work that the number of operations does not bound."""


class PickleMachine:
    """The machine that runs a pickle.

    Args:
        data: the pickle, of protocol 2 as ``torch.save`` writes it.
        checks: what it may do.
    """

    def __init__(self, data: bytes, checks: PickleChecks) -> None:
        self.data, self.at = data, 0
        self._checks = checks
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The stand-in for what the pickle describes.

        Raises:
            pickle.UnpicklingError: it uses an operation that torch does not know.
            Exception: of another kind, if it is not a valid pickle.
        """
        data = self.data
        while (code := data[self.at]) != _STOP:
            self.at += 1
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise pickle.UnpicklingError(f"its pickle uses the operation {bytes([code])!r}.")
            operation(self)
        return self.stack.pop()

    def take(self, size: int) -> bytes:
        """The next bytes; if there are fewer, the pickle has no end."""
        at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def take_int(self, size: int, *, signed: bool = False) -> int:
        """The next bytes as a number."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def take_global(self) -> str:
        """The name of a class or function as torch reads it: Python 3's for those of Python 2."""
        lines = []
        for _ in range(2):
            end = self.data.index(b"\n", self.at)
            lines.append(self.data[self.at : end].decode())
            self.at = end + 1
        module, name = lines
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return f"{module}.{name}"

    def begin_mark(self) -> None:
        """Collect the values that follow."""
        self._marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """All values since the last mark."""
        items, self.stack = self.stack, self._marks.pop()
        return items

    def append(self, items: list[Any]) -> None:
        """Add items to the list on the stack."""
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("it appends to something that is no list.")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict on the stack."""
        target = self.stack[-1]
        if type(target) is not Dict:
            raise pickle.UnpicklingError("it sets a key in something that is no dict.")
        self._checks.check_keys(items[::2], target)
        target += items

    def reduce(self) -> None:
        """Call a function."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._checks.call(function, arguments))

    def load_storage(self) -> None:
        """Push the memory of tensors."""
        self.stack.append(self._checks.load_storage(self.stack.pop()))

    def build(self) -> None:
        """Give a value its attributes."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Dict and type(state) is Dict:
            self._checks.spend(len(state))
            target += state
        elif target is not None:  # of a type that the program allows: torch decides
            raise pickle.UnpicklingError("it gives attributes to something that has none.")


_Operation = Callable[[PickleMachine], Any]


def _push(value_of: Callable[[PickleMachine], Any]) -> _Operation:
    def operation(machine: PickleMachine) -> None:
        value = value_of(machine)  # may replace the stack
        machine.stack.append(value)

    return operation


def _push_constant(value: Any) -> _Operation:
    return lambda machine: machine.stack.append(value)


def _push_new(kind: type) -> _Operation:
    return lambda machine: machine.stack.append(kind())


def _push_sized(size: int) -> _Operation:
    return _push(lambda machine: machine.take(machine.take_int(size)))


# These four are most of what a checkpoint of many tensors holds, so they are spelled out.


def _push_known(size: int) -> _Operation:
    def operation(machine: PickleMachine) -> None:
        at = machine.at
        machine.at = at + size
        machine.stack.append(machine.memo[int.from_bytes(machine.data[at : at + size], "little")])

    return operation


def _remember(size: int) -> _Operation:
    def operation(machine: PickleMachine) -> None:
        at = machine.at
        machine.at = at + size
        machine.memo[int.from_bytes(machine.data[at : at + size], "little")] = machine.stack[-1]

    return operation


def _push_int(size: int, *, signed: bool = False) -> _Operation:
    def operation(machine: PickleMachine) -> None:
        at = machine.at
        machine.at = at + size
        number = int.from_bytes(machine.data[at : at + size], "little", signed=signed)
        machine.stack.append(number)

    return operation


def _push_tuple(size: int) -> _Operation:
    def operation(machine: PickleMachine) -> None:
        items = tuple(machine.stack[-size:])
        machine.stack[-size:] = [items]

    return operation


_STOP = b"."[0]
_BY_CODE: dict[bytes, _Operation] = {
    b"\x80": lambda machine: machine.take(1),  # the protocol
    b"c": _push(PickleMachine.take_global),
    b"N": _push_constant(None),
    b"\x88": _push_constant(True),
    b"\x89": _push_constant(False),
    b"J": _push_int(4, signed=True),
    b"K": _push_int(1),
    b"M": _push_int(2),
    b"\x8a": _push(lambda machine: machine.take_int(machine.take_int(1), signed=True)),
    b"G": _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    b"X": _push_sized(4),
    b"U": _push_sized(1),
    b")": _push_constant(()),
    b"]": _push_new(list),
    b"}": _push_new(Dict),
    b"\x8f": _push_new(list),  # a set: torch has no operation that fills it
    b"\x85": _push_tuple(1),
    b"\x86": _push_tuple(2),
    b"\x87": _push_tuple(3),
    b"(": PickleMachine.begin_mark,
    b"t": _push(lambda machine: tuple(machine.pop_mark())),
    b"a": lambda machine: machine.append([machine.stack.pop()]),
    b"e": lambda machine: machine.append(machine.pop_mark()),
    b"s": lambda machine: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    b"u": lambda machine: machine.set_items(machine.pop_mark()),
    b"h": _push_known(1),
    b"j": _push_known(4),
    b"q": _remember(1),
    b"r": _remember(4),
    b"Q": PickleMachine.load_storage,
    b"R": PickleMachine.reduce,
    b"\x81": PickleMachine.reduce,
    b"b": PickleMachine.build,
}
_OPERATIONS = {code[0]: operation for code, operation in _BY_CODE.items()}
