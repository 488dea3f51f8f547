"""ModelSummary: what a model is made of, as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fitkit.core.html import Html, table

_HEADER = ("module", "kind", "output", "parameters", "trainable")


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        name: its path in the model, empty for the model itself.
        kind: its class.
        outputs: shapes of the tensors that its first call returned, if it was called.
        num_calls: how often one pass calls it.
        num_parameters: numbers in parameters that are its own, not of modules inside it, and were
            not counted above.
        num_trainable: those of them that require a gradient.
        same_as: the name under which the same module, or all its own parameters, stand above.
    """

    name: str
    kind: str
    outputs: tuple[tuple[int, ...], ...]
    num_calls: int
    num_parameters: int
    num_trainable: int
    same_as: str | None

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        depth = self.name.count(".") + 1 if self.name else 0
        shapes = ", ".join(map(str, self.outputs))
        calls = f" x{self.num_calls}" if self.num_calls > 1 else ""
        if self.same_as is not None:
            numbers = (f"as {self.same_as or 'the model'}", "")
        else:
            numbers = (_count(self.num_parameters), _count(self.num_trainable))
        name = "  " * depth + (self.name.rpartition(".")[2] or "(model)")
        return (name, self.kind, shapes + calls, *numbers)


@dataclass(frozen=True)
class ModelSummary:
    """What a model is made of; a table where it is printed or shown.

    Shared modules and tied weights are counted once.

    Attributes:
        name: the model's class.
        rows: its modules, from the outermost, in the order in which they were registered.
        num_parameters: numbers in its parameters.
        num_trainable: those of them that require a gradient.
        parameter_bytes: memory of the parameters.
        buffer_bytes: memory of the buffers.
        gradient_bytes: memory of the gradients while all of them are there.
        optimizer_bytes: memory of the optimizer's state once it has stepped; ``None`` if there is
            no optimizer, or it does not tell before it has stepped.
    """

    name: str
    rows: tuple[ModuleRow, ...]
    num_parameters: int
    num_trainable: int
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int | None

    def __str__(self) -> str:
        cells = [_HEADER, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [_line(line, widths) for line in cells]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self._totals()])

    __repr__ = __str__

    def _totals(self) -> list[str]:
        state = self.optimizer_bytes
        memory = {
            "parameters": self.parameter_bytes,
            "buffers": self.buffer_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": state,
        }
        parts = [f"{name} {_size(n)}" for name, n in memory.items() if n is not None]
        fixed = _count(self.num_parameters - self.num_trainable)
        return [
            f"parameters: {_count(self.num_parameters)}, trainable {_count(self.num_trainable)}, "
            f"not trainable {fixed}",
            f"memory: {', '.join(parts)}",
        ]

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        rows = [[cell.replace("  ", "\u2003") for cell in row.cells()] for row in self.rows]
        totals = "".join(f"<div>{line}</div>" for line in self._totals())
        return Html(f"{table(rows, _HEADER)}{totals}")


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    name, kind, output, *numbers = [
        cell.rjust(width) if position > 2 else cell.ljust(width)
        for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([name, kind, output, *numbers]).rstrip()


def _count(number: int) -> str:
    return f"{number:,}"


def _size(num_bytes: int) -> str:
    """A number of bytes.

    >>> _size(999), _size(2_500_000)
    ('999 B', '2.4 MiB')
    """
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
