"""Preserves the modes, gradients, buffers and weights of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fitkit.core.state_placement import copy_to_host
from fitkit.core.tree import TensorMap
from fitkit.distributed.dtensor import local_tensor
from fitkit.runtime.lazy_modules import has_values, make_lazy_undo


@contextmanager
def preserve_module_state(module: nn.Module, tensor_map: TensorMap) -> Iterator[None]:
    """Clear the gradients inside ``with``; restore modes, gradients and buffers at the end.

    The values of parameters are not preserved, but those without values are so again.
    ``tensor_map`` copies a buffer.
    """
    undo_lazy = make_lazy_undo(module)
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer, tensor_map(buffer))
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if has_values(buffer)
    ]
    gradients = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        undo_lazy()
        for part, training in modes:
            part.training = training
        for part, name, buffer, value in buffers:
            setattr(part, name, buffer)
            buffer.detach().copy_(value)
        for parameter, requires_grad, gradient in gradients:
            parameter.requires_grad = requires_grad
            parameter.grad = gradient


def make_weights_undo(module: nn.Module) -> Callable[[], None]:
    """A function that puts back parameters and buffers, also replaced or resized ones.

    The copies are on the host.
    """
    undo_lazy = make_lazy_undo(module)
    kept = [
        (part, name, tensor, copy_to_host(local_tensor(tensor)))
        for part in module.modules()
        for name, tensor in _own_tensors(part)
        if has_values(tensor)
    ]

    @torch.no_grad()
    def undo() -> None:
        undo_lazy()
        for part, name, tensor, value in kept:
            if getattr(part, name, None) is not tensor:
                setattr(part, name, tensor)
            local = local_tensor(tensor)
            if local.shape == value.shape:
                local.detach().copy_(value)  # it may be an inference tensor
            else:
                tensor.data = value.to(tensor.device)

    return undo


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters(recurse=False)
    yield from part.named_buffers(recurse=False)
