"""Make the ``ModelSummary`` of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError
from fitkit.core.state_placement import detached_copy
from fitkit.core.tree import iterate_tensors
from fitkit.core.types import ModelType
from fitkit.data.frames import as_arrays
from fitkit.data.in_memory import as_tensors, is_in_memory, whole_tensors
from fitkit.data.model_arguments import call_model
from fitkit.data.split_batch import split_inputs
from fitkit.handler.group_options import IMPLEMENTATION_FLAGS
from fitkit.runtime.device import floating_dtype, to_device
from fitkit.runtime.lazy_modules import has_values, uninitialized_names
from fitkit.runtime.module_state import preserve_module_state
from fitkit.runtime.rng import capture_streams, restore_streams
from fitkit.summary.model_summary import ModelSummary, ModuleRow


def summarize(
    module: nn.Module,
    optimizer: Optimizer | None,
    device: torch.device,
    model_type: ModelType,
    example: Any = None,
    input_size: Any = None,
) -> ModelSummary:
    """The summary of a model and its optimizer; see ``NNHandler.summary``.

    Raises:
        ConfigurationError: the example cannot be used, or parameters have no shape yet.
    """
    calls: dict[int, list[tuple[tuple[int, ...], ...]]] = {}
    if example is not None or input_size is not None:
        inputs = _inputs(module, device, model_type, example, input_size)
        calls = _record_calls(module, device, inputs)
    parameters = list(module.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return ModelSummary(
        type(module).__name__,
        tuple(_rows(module, calls)),
        sum(map(_numel, parameters)),
        sum(map(_numel, trainable)),
        _bytes(parameters),
        _bytes(module.buffers()),
        _bytes(trainable),
        None if optimizer is None else _optimizer_bytes(optimizer),
    )


def _rows(module: nn.Module, calls: dict[int, Any]) -> Iterator[ModuleRow]:
    names: dict[int, str] = {}  # the first name of each module and each parameter's owner
    duplicate: str | None = None  # the name of a module that has a row already, with a dot
    for name, part in module.named_modules(remove_duplicate=False):
        if duplicate is not None and name.startswith(duplicate):
            continue
        same_as = names.setdefault(id(part), name)
        duplicate = None if same_as == name else f"{name}."
        own = list(part.parameters(recurse=False))
        new = [tensor for tensor in own if names.setdefault(id(tensor), name) == name]
        if own and not new:
            same_as = names[id(own[0])]
        shapes = calls.get(id(part), []) if duplicate is None else []
        yield ModuleRow(
            name,
            type(part).__name__,
            shapes[0] if shapes else (),
            len(shapes),
            sum(map(_numel, new)),
            sum(_numel(tensor) for tensor in new if tensor.requires_grad),
            None if same_as == name else same_as,
        )


def _inputs(
    module: nn.Module, device: torch.device, model_type: ModelType, example: Any, input_size: Any
) -> Any:
    """The inputs of the model in an example, or zeros of ``input_size``, on the device."""
    dtype = floating_dtype(module)
    if example is not None and input_size is not None:
        raise ConfigurationError("an example and input_size were both given: pass one of them.")
    if example is None:
        inputs = _zeros(input_size, dtype)
    elif model_type is ModelType.SCORE_BASED:
        inputs = example
    else:
        arrays = as_arrays(example)
        is_array = is_in_memory(arrays)
        inputs = split_inputs(whole_tensors(as_tensors(arrays, dtype)) if is_array else arrays)
    return to_device(inputs, device)


def _zeros(size: Any, dtype: torch.dtype) -> Any:
    sizes = list(size) if isinstance(size, (tuple, list)) else []
    if sizes and all(type(number) is int and number >= 0 for number in sizes):
        return torch.zeros(sizes, dtype=dtype)
    if sizes and all(isinstance(shape, (tuple, list)) for shape in sizes):
        return tuple(_zeros(shape, dtype) for shape in sizes)
    raise ConfigurationError(
        f"input_size must be a shape with its batch dimension such as (1, 3, 32, 32), or a list of "
        f"such shapes for several inputs, received {size!r}."
    )


def _record_calls(module: nn.Module, device: torch.device, inputs: Any) -> dict[int, Any]:
    """The output shapes of each module, by its id, for each call in one evaluation pass."""
    if uninitialized_names(module):
        raise ConfigurationError(
            f"{type(module).__name__} has parameters that its first batch initializes, so a pass "
            f"would change it: call it on a batch first, or leave out the example."
        )
    calls: dict[int, Any] = {}

    def record(part: nn.Module, _: Any, outputs: Any) -> None:
        shapes = tuple(tuple(tensor.shape) for tensor in iterate_tensors(outputs))
        calls.setdefault(id(part), []).append(shapes)

    with ExitStack() as undo:
        undo.callback(restore_streams, capture_streams(device), device)
        undo.enter_context(preserve_module_state(module, detached_copy))
        for part in module.modules():
            undo.callback(part.register_forward_hook(record).remove)
        module.eval()
        with torch.no_grad():
            call_model(module, inputs)
    return calls


def _numel(parameter: Tensor) -> int:
    return parameter.numel() if has_values(parameter) else 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    # an uninitialized parameter has no element_size either
    return sum(numel * tensor.element_size() for tensor in tensors if (numel := _numel(tensor)))


def _optimizer_bytes(optimizer: Optimizer) -> int | None:
    """Memory of the optimizer's state, or of the state that its first step will make."""
    state = optimizer.state or _state_after_a_step(optimizer)
    if state is None:
        return None
    return _bytes(tensor for values in state.values() for tensor in iterate_tensors(values))


def _state_after_a_step(optimizer: Optimizer) -> Mapping[Any, Any] | None:
    """The state of such an optimizer after a step over parameters without memory."""
    groups = [
        {
            **group,
            **{name: False for name in IMPLEMENTATION_FLAGS if name in group},
            "params": [
                _meta_parameter(p) for p in group["params"] if p.requires_grad and has_values(p)
            ],
        }
        for group in optimizer.param_groups
    ]
    optimizer_class: Any = type(optimizer)
    try:
        copied_optimizer = optimizer_class(groups)
        copied_optimizer.step()
    except (RuntimeError, TypeError, ValueError, AttributeError):  # it reads values, for instance
        return None
    state: Mapping[Any, Any] = copied_optimizer.state
    return state


def _meta_parameter(parameter: Tensor) -> nn.Parameter:
    meta = nn.Parameter(torch.empty_like(parameter, device="meta"))
    meta.grad = torch.empty_like(meta)
    return meta
