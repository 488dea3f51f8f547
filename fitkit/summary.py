"""What a model is made of: modules, shapes, parameters and memory, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from fitkit.contents import IMPLEMENTATION
from fitkit.core.errors import ConfigurationError
from fitkit.core.html import Html, table
from fitkit.core.tree import iterate_tensors
from fitkit.core.types import ModelType
from fitkit.data.batches import call_model, split_inputs
from fitkit.data.in_memory import as_tensors, is_in_memory
from fitkit.handler_view import copied
from fitkit.runtime.device import floating_dtype, to_device
from fitkit.runtime.rng import capture_streams, restore_streams
from fitkit.unchanged import unchanged_module

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView

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


def summarize(handler: HandlerView, example: Any = None, input_size: Any = None) -> ModelSummary:
    """The summary of a handler's model; see ``NNHandler.summary``.

    Raises:
        ConfigurationError: the example is none, or the model has parameters without a shape yet.
    """
    module = handler.module
    calls: dict[int, list[tuple[tuple[int, ...], ...]]] = {}
    if example is not None or input_size is not None:
        calls = _watched_calls(handler, _inputs(handler, example, input_size))
    parameters = list(module.parameters())
    trainable = [one for one in parameters if one.requires_grad]
    return ModelSummary(
        type(module).__name__,
        tuple(_rows(module, calls)),
        sum(map(_numel, parameters)),
        sum(map(_numel, trainable)),
        _bytes(parameters),
        _bytes(module.buffers()),
        _bytes(trainable),
        None if handler.optimizer is None else _optimizer_bytes(handler.optimizer),
    )


def _rows(module: nn.Module, calls: dict[int, Any]) -> Iterator[ModuleRow]:
    names: dict[int, str] = {}  # of modules, and of the owners of parameters, as first met
    below_twin: str | None = None
    for name, part in module.named_modules(remove_duplicate=False):
        if below_twin is not None and name.startswith(below_twin):
            continue
        same_as = names.setdefault(id(part), name)
        below_twin = None if same_as == name else f"{name}."
        own = list(part.parameters(recurse=False))
        new = [one for one in own if names.setdefault(id(one), name) == name]
        if own and not new:
            same_as = names[id(own[0])]
        shapes = calls.get(id(part), []) if below_twin is None else []
        yield ModuleRow(
            name,
            type(part).__name__,
            shapes[0] if shapes else (),
            len(shapes),
            sum(map(_numel, new)),
            sum(_numel(one) for one in new if one.requires_grad),
            None if same_as == name else same_as,
        )


def _inputs(handler: HandlerView, example: Any, input_size: Any) -> Any:
    """What the model is called with."""
    dtype = floating_dtype(handler.module)
    if example is not None and input_size is not None:
        raise ConfigurationError("an example and input_size were both given: pass one of them.")
    if example is None:
        inputs = _zeros(input_size, dtype)
    elif handler.parts.model_type is ModelType.SCORE_BASED:
        inputs = example
    else:
        inputs = split_inputs(as_tensors(example, dtype) if is_in_memory(example) else example)
    return to_device(inputs, handler.device)


def _zeros(size: Any, dtype: torch.dtype) -> Any:
    sizes = list(size) if isinstance(size, (tuple, list)) else []
    if sizes and all(type(number) is int and number >= 0 for number in sizes):
        return torch.zeros(sizes, dtype=dtype)
    if sizes and all(isinstance(one, (tuple, list)) for one in sizes):
        return tuple(_zeros(one, dtype) for one in sizes)
    raise ConfigurationError(
        f"input_size must be a shape with its batch dimension such as (1, 3, 32, 32), or a list of "
        f"such shapes for several inputs, received {size!r}."
    )


def _watched_calls(handler: HandlerView, inputs: Any) -> dict[int, Any]:
    """The shapes that each module returns at each call in one pass in evaluation mode."""
    module = handler.module
    if any(isinstance(one, UninitializedParameter) for one in module.parameters()):
        raise ConfigurationError(
            f"{type(module).__name__} has parameters whose shapes its first batch decides, so a "
            f"pass would change it: call it on a batch first, or leave out the example."
        )
    calls: dict[int, Any] = {}

    def note(part: nn.Module, _: Any, outputs: Any) -> None:
        shapes = tuple(tuple(tensor.shape) for tensor in iterate_tensors(outputs))
        calls.setdefault(id(part), []).append(shapes)

    with ExitStack() as undo:
        undo.callback(restore_streams, capture_streams())
        undo.enter_context(unchanged_module(module, copied))
        for part in module.modules():
            undo.callback(part.register_forward_hook(note).remove)
        module.eval()
        with torch.no_grad():
            call_model(module, inputs)
    return calls


def _numel(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_numel(one) * one.element_size() for one in tensors)


def _optimizer_bytes(optimizer: Optimizer) -> int | None:
    """Of the state that there is, or else of that which a first step will make."""
    state = optimizer.state or _state_after_a_step(optimizer)
    if state is None:
        return None
    return _bytes(tensor for values in state.values() for tensor in iterate_tensors(values))


def _state_after_a_step(optimizer: Optimizer) -> Mapping[Any, Any] | None:
    """The state of such an optimizer over parameters without memory."""
    groups = [
        {
            **group,
            **{name: False for name in IMPLEMENTATION if name in group},
            "params": [_without_memory(one) for one in group["params"] if one.requires_grad],
        }
        for group in optimizer.param_groups
    ]
    kind: Any = type(optimizer)
    try:
        twin = kind(groups)
        twin.step()
    except (RuntimeError, TypeError, ValueError, AttributeError):  # it reads values, or wants more
        return None
    state: Mapping[Any, Any] = twin.state
    return state


def _without_memory(parameter: Tensor) -> nn.Parameter:
    twin = nn.Parameter(torch.empty_like(parameter, device="meta"))
    twin.grad = torch.empty_like(twin)
    return twin


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
