"""ModelSummary: the table of a model's modules, shapes, parameters and memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fitkit.core.formatting import format_bytes
from fitkit.core.html import Html, table

_HEADER = ("module", "kind", "output", "parameters", "trainable")


@dataclass(frozen=True)
class ModuleRow:
    """The row of one module.

    Attributes:
        name: its path in the model, empty for the model itself.
        kind: its class.
        outputs: shapes of the tensors that its first call returned, if it was called.
        num_calls: how often one pass calls it.
        num_parameters: elements of its own parameters, without those of modules inside it and those
            of rows above.
        num_trainable: those of them that require a gradient.
        same_as: the name of a row above with the same module, or the same parameters.
    """

    name: str
    kind: str
    outputs: tuple[tuple[int, ...], ...]
    num_calls: int
    num_parameters: int
    num_trainable: int
    same_as: str | None

    def cells(self) -> tuple[str, ...]:
        """The cells of the row, as text."""
        depth = self.name.count(".") + 1 if self.name else 0
        shapes = ", ".join(map(str, self.outputs))
        calls = f" x{self.num_calls}" if self.num_calls > 1 else ""
        if self.same_as is not None:
            numbers = (f"as {self.same_as or 'the model'}", "")
        else:
            numbers = (f"{self.num_parameters:,}", f"{self.num_trainable:,}")
        name = "  " * depth + (self.name.rpartition(".")[2] or "(model)")
        return (name, self.kind, shapes + calls, *numbers)


@dataclass(frozen=True)
class ModelSummary:
    """The modules of a model with shapes, parameters and memory; printed as a table.

    Shared modules and tied weights are counted once.

    Attributes:
        name: the model's class.
        rows: its modules, from the outermost, in the order in which they were registered.
        num_parameters: elements of its parameters.
        num_trainable: those of them that require a gradient.
        parameter_bytes: memory of the parameters.
        buffer_bytes: memory of the buffers.
        gradient_bytes: memory of the gradients of all trainable parameters.
        optimizer_bytes: memory of the optimizer's state after a step; ``None`` if there is no
            optimizer, or its state is unknown before its first step.
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
        memory = {
            "parameters": self.parameter_bytes,
            "buffers": self.buffer_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
        }
        parts = [f"{name} {format_bytes(n)}" for name, n in memory.items() if n is not None]
        frozen = self.num_parameters - self.num_trainable
        return [
            f"parameters: {self.num_parameters:,}, trainable {self.num_trainable:,}, "
            f"not trainable {frozen:,}",
            f"memory: {', '.join(parts)}",
        ]

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        rows = [[cell.replace("  ", "\u2003") for cell in row.cells()] for row in self.rows]
        totals = "".join(f"<div>{line}</div>" for line in self._totals())
        return Html(f"{table(rows, _HEADER)}{totals}")


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    columns = enumerate(zip(cells, widths, strict=True))
    return "  ".join(
        cell.rjust(width) if column > 2 else cell.ljust(width) for column, (cell, width) in columns
    ).rstrip()
