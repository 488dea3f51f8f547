"""Run the operations of a pickle on stand-ins: nothing that it describes is hashed or built."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from fitkit.checkpointing.storage.pickle_reader import PickleReader, read_floats
from fitkit.checkpointing.storage.pickle_values import (
    ATTRIBUTES,
    HARMLESS_KEYS,
    LONG,
    METHODS,
    Dict,
    LongText,
    PickleChecks,
)


class BreaksOffError(pickle.UnpicklingError):
    """The beginning of a pickle breaks off in other containers than expected."""


class PickleMachine(PickleReader):
    """The machine that runs a pickle.

    Args:
        data: the pickle, of protocol 2 as ``torch.save`` writes it.
        checks: what it may do.
    """

    def __init__(self, data: bytes, checks: PickleChecks) -> None:
        super().__init__(data)
        self.checks = checks
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
            elif code == _PUT:
                memo[data[at]] = stack[-1]
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
                floats = read_floats(data, at - 1)
                stack += floats
                at += 9 * len(floats) - 1
            elif code == _SMALL_INT:
                stack.append(data[at])
                at += 1
            elif code == _SHORT_INT:
                stack.append(data[at] + 256 * data[at + 1])
                at += 2
            elif code == _STOP:
                self.at = at
                return stack.pop()
            else:
                self.at = at
                operations[code](self)
                at, stack = self.at, self.stack

    def run_beginning(self, levels: int) -> Any:
        """The stand-in for a dict of which ``data`` has the beginning: some keys with their values.

        Args:
            levels: in how many dicts it breaks off.

        Raises:
            BreaksOffError: it breaks off in more or fewer.
            Exception: as ``run``.
        """
        self.data += _PUSH_AND_STOP
        self.run()
        if len(self._marks) != levels:
            raise BreaksOffError
        while self._marks:
            self.add_items(self.pop_mark())
        return self.stack.pop()

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
            self.checks.check_keys(keys, target)
        target += items

    def reduce(self) -> None:
        """Call a function."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.checks.call(function, arguments))

    def load_storage(self) -> None:
        """Push the memory of tensors."""
        self.stack.append(self.checks.load_storage(self.stack.pop()))

    def build(self) -> None:
        """Give a value its attributes."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Dict and type(state) is Dict:
            if not METHODS.isdisjoint(state[::2]):  # whoever calls it would get what is stored
                raise pickle.UnpicklingError("it replaces a method.")
            self.checks.spend(len(state))
            target += [ATTRIBUTES, state]
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


_PUSH_AND_STOP = b"N."
# done by the loop itself
_GET, _PUT, _LONG_PUT, _TEXT, _FLOAT, _SMALL_INT, _SHORT_INT, _STOP = b"hqrXGKM."
_read_uint = struct.Struct("<I").unpack_from
_BY_CODE: dict[bytes, _Operation] = {
    b"\x80": lambda machine: machine.take(1),  # the protocol
    b"c": _push(lambda machine: machine.checks.name(machine.take_global())),
    b"N": _push_constant(None),
    b"\x88": _push_constant(True),
    b"\x89": _push_constant(False),
    b"J": _push_int("<i"),
    b"j": _push_known,
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
