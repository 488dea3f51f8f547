"""Run the operations of a pickle on stand-ins: nothing that it describes is hashed or built."""

from __future__ import annotations

import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any

from fitkit.checkpointing.storage.pickle_values import (
    HARMLESS_KEYS,
    LARGE,
    LONG,
    METHODS,
    Dict,
    LargeInt,
    LongText,
    PickleChecks,
)


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
        data, memo, stack, operations = self.data, self.memo, self.stack, _OPERATIONS
        at = 0
        while True:  # what most of a file consists of is spelled out: a call would take longer
            code = data[at]
            at += 1
            if code == _GET:
                stack.append(memo[data[at]])
                at += 1
            elif code == _LONG_PUT:
                memo[_read_uint(data, at)[0]] = stack[-1]
                at += 4
            elif code == _TEXT:
                size = _read_uint(data, at)[0]
                at += 4
                text = data[at : at + size]
                stack.append(text if size <= LONG else LongText(text))
                at += size
            elif code == _FLOAT:
                stack.append(_read_float(data, at)[0])
                at += 8
            elif code == _SMALL_INT:
                stack.append(data[at])
                at += 1
            elif code == _STOP:
                self.at = at
                return stack.pop()
            else:
                self.at = at
                operations[code](self)
                at, stack = self.at, self.stack

    def take(self, size: int) -> bytes:
        """The next bytes; if there are fewer, the pickle has no end."""
        at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def take_size(self, num_bytes: int) -> int:
        """The next bytes as a number from 0."""
        return int.from_bytes(self.take(num_bytes), "little")

    def take_long(self) -> int:
        """A number of any size."""
        number = int.from_bytes(self.take(self.take_size(1)), "little", signed=True)
        return number if -LARGE < number < LARGE else LargeInt(number)

    def take_global(self) -> str:
        """The name of a class or function as torch reads it: Python 3's for those of Python 2."""
        lines = []
        for _ in range(2):
            end = self.data.index(b"\n", self.at, self.at + _MAX_NAME)
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

    def list_on_top(self) -> list[Any]:
        """The list on the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError("it appends to something that is no list.")
        return target

    def add_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict on the stack."""
        target = self.stack[-1]
        if type(target) is not Dict:
            raise pickle.UnpicklingError("it sets a key in something that is no dict.")
        keys = items[::2]
        if not HARMLESS_KEYS.issuperset(map(type, keys)):
            self._checks.check_keys(keys, target)
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
            if not METHODS.isdisjoint(state[::2]):  # whoever calls it would get what is stored
                raise pickle.UnpicklingError("it replaces a method.")
            self._checks.spend(len(state))
            target += state
            target.num_bytes += state.num_bytes
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


def _push_int(form: str) -> _Operation:
    size, read = struct.calcsize(form), struct.Struct(form).unpack_from

    def operation(machine: PickleMachine) -> None:
        machine.stack.append(read(machine.data, machine.at)[0])
        machine.at += size

    return operation


def _push_known(machine: PickleMachine) -> None:
    machine.stack.append(machine.memo[machine.take_size(4)])


def _remember(machine: PickleMachine) -> None:
    machine.memo[machine.data[machine.at]] = machine.stack[-1]
    machine.at += 1


def _tuple1(machine: PickleMachine) -> None:
    stack = machine.stack
    stack[-1] = (stack[-1],)


def _tuple2(machine: PickleMachine) -> None:
    stack = machine.stack
    last = stack.pop()
    stack[-1] = (stack[-1], last)


def _tuple3(machine: PickleMachine) -> None:
    stack = machine.stack
    last, middle = stack.pop(), stack.pop()
    stack[-1] = (stack[-1], middle, last)


def _append(machine: PickleMachine) -> None:
    item = machine.stack.pop()
    machine.list_on_top().append(item)


def _extend(machine: PickleMachine) -> None:
    items = machine.pop_mark()
    machine.list_on_top().extend(items)


def _set_item(machine: PickleMachine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.add_items([key, value])


def _refuse(machine: PickleMachine) -> None:
    code = machine.data[machine.at - 1]
    raise pickle.UnpicklingError(f"its pickle uses the operation {bytes([code])!r}.")


_MAX_NAME = 1000  # torch searches its own message for an unknown name with slow patterns
# done by the loop itself
_GET, _LONG_PUT, _TEXT, _FLOAT, _SMALL_INT, _STOP = b"hrXGK."
_read_uint, _read_float = struct.Struct("<I").unpack_from, struct.Struct(">d").unpack_from
_BY_CODE: dict[bytes, _Operation] = {
    b"\x80": lambda machine: machine.take(1),  # the protocol
    b"c": _push(PickleMachine.take_global),
    b"N": _push_constant(None),
    b"\x88": _push_constant(True),
    b"\x89": _push_constant(False),
    b"J": _push_int("<i"),
    b"M": _push_int("<H"),
    b"j": _push_known,
    b"q": _remember,
    b"\x8a": _push(PickleMachine.take_long),
    b"U": _push(lambda machine: LongText(machine.take(machine.take_size(1)))),
    b")": _push_constant(()),
    b"]": _push_new(list),
    b"}": _push_new(Dict),
    b"\x8f": _push_new(list),  # a set: torch has no operation that fills it
    b"\x85": _tuple1,
    b"\x86": _tuple2,
    b"\x87": _tuple3,
    b"(": PickleMachine.begin_mark,
    b"t": _push(lambda machine: tuple(machine.pop_mark())),
    b"a": _append,
    b"e": _extend,
    b"s": _set_item,
    b"u": lambda machine: machine.add_items(machine.pop_mark()),
    b"Q": PickleMachine.load_storage,
    b"R": PickleMachine.reduce,
    b"\x81": PickleMachine.reduce,
    b"b": PickleMachine.build,
}
_OPERATIONS = [_BY_CODE.get(bytes([code]), _refuse) for code in range(256)]
