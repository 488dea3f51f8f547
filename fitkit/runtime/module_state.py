"""Preserves the modes, gradients and buffers of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fitkit.core.tree import TensorMap


@contextmanager
def preserve_module_state(module: nn.Module, tensor_map: TensorMap) -> Iterator[None]:
    """Clear the gradients inside ``with``; restore modes, gradients and buffers at the end.

    The values of parameters are not preserved. ``tensor_map`` copies a buffer.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer, tensor_map(buffer))
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    gradients = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for part, name, buffer, value in buffers:
            setattr(part, name, buffer)
            buffer.detach().copy_(value)
        for parameter, requires_grad, gradient in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
