"""From a handler to the summary of its model: modules, shapes, parameters and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from fitkit.contents import IMPLEMENTATION
from fitkit.core.errors import ConfigurationError
from fitkit.core.tree import iterate_tensors
from fitkit.core.types import ModelType
from fitkit.data.batches import call_model, split_inputs
from fitkit.data.in_memory import as_tensors, is_in_memory
from fitkit.handler_view import copied
from fitkit.model_summary import ModelSummary, ModuleRow
from fitkit.runtime.device import floating_dtype, to_device
from fitkit.runtime.rng import capture_streams, restore_streams
from fitkit.unchanged import unchanged_module

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView


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
        undo.callback(restore_streams, capture_streams(handler.device), handler.device)
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
    # those without a shape have no size of an element either
    return sum(number * one.element_size() for one in tensors if (number := _numel(one)))


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
