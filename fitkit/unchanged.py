"""A handler that may be tried out: what it goes through leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.data import DataLoader

from fitkit.core.devices import on_host
from fitkit.core.tree import map_tensors
from fitkit.core.types import Stateful
from fitkit.data.generators import UserGenerators
from fitkit.data.spec import DataSpec
from fitkit.runtime.rng import capture_streams, restore_streams
from fitkit.snapshot import Skips, restore, take
from fitkit.unfinished import Unfinished

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView


@contextmanager
def unchanged(handler: HandlerView, data: Iterable[DataSpec | None]) -> Iterator[None]:
    """Inside ``with`` the handler may train; after it, and after an error, it is as it was.

    That is every part of a checkpoint, and what is in none: gradients, modes, buffers that are not
    saved, a loss function's own tensors, what waits for the next ``fit``, and the generators of
    loaders. What a model keeps in plain Python attributes is not put back. What is kept meanwhile
    takes memory of the host alone.

    Args:
        handler: with no run under way.
        data: what is read meanwhile.
    """
    loss = None if handler.parts.loss is None else handler.parts.loss.function
    with ExitStack() as undo:
        undo.callback(restore_streams, capture_streams(handler.device), handler.device)
        undo.callback(_remembered_positions(data))
        for put_back in (handler.remember(), handler.callbacks.remember(heard=True)):
            undo.callback(put_back)
        handler.unfinished = Unfinished()
        handler.callbacks.departed, handler.callbacks.unclaimed = [], {}
        before = take(handler, handler.parallel.locally(on_host))
        undo.callback(restore, handler, before, skips=Skips(callbacks=True))
        undo.callback(handler.parts.remember())
        undo.enter_context(unchanged_module(handler.module, on_host))
        if isinstance(loss, nn.Module):
            undo.callback(loss.load_state_dict, map_tensors(on_host, dict(loss.state_dict())))
            undo.enter_context(unchanged_module(loss, on_host))
        yield


@contextmanager
def unchanged_module(module: nn.Module, place: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside ``with`` a module has no gradients; after it modes, gradients and buffers are back.

    Its parameters' values are not looked at.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer, place(buffer))
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    gradients = [(one, one.requires_grad, one.grad) for one in module.parameters()]
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


def _remembered_positions(data: Iterable[DataSpec | None]) -> Callable[[], None]:
    """A function that puts loaders, and their generators, back where they are now."""
    specs = [spec for spec in data if spec is not None]
    # a DataLoader begins each pass anew, and asking torchdata's for its state would begin one
    loaders = [spec.data for spec in specs if isinstance(spec.data, Stateful)]
    loaders = [loader for loader in loaders if not isinstance(loader, DataLoader)]
    positions = [copy.deepcopy(loader.state_dict()) for loader in loaders]
    owners = [o for s in specs for o in (s.data, SimpleNamespace(**s.loader_kwargs))]
    generators = [UserGenerators(owner) for owner in owners]
    states = [one.state_dict() for one in generators]

    def put_back() -> None:
        for loader, position in zip(loaders, positions, strict=True):
            loader.load_state_dict(position)
        for one, state in zip(generators, states, strict=True):
            one.put_now(state)

    return put_back
