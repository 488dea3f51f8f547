"""Try a handler out: whatever it goes through is undone afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

from torch import nn
from torch.utils.data import DataLoader

from fitkit.core.state_placement import copy_to_host
from fitkit.core.types import Stateful
from fitkit.data.generator_state import UserGenerators
from fitkit.data.spec import DataSpec
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.fit_session import FitSession
from fitkit.handler.state_dict import make_state_undo
from fitkit.runtime.module_state import preserve_module_state
from fitkit.runtime.rng import capture_streams, restore_streams


@contextmanager
def preserve_handler_state(handler: BaseHandler, data: Iterable[DataSpec | None]) -> Iterator[None]:
    """Inside ``with`` the handler may train; afterwards, also after an error, it is as it was.

    That includes everything in a checkpoint, and what is in none: gradients, modes, buffers that
    are not saved, a loss function's own tensors, pending state, and the generators of loaders.
    Plain Python attributes of a model are not put back. Copies are kept on the host. ``data`` is
    what is read inside ``with``.
    """
    loss = None if handler.parts.loss is None else handler.parts.loss.function
    with ExitStack() as undo:
        undo.callback(restore_streams, capture_streams(handler.device), handler.device)
        undo.callback(_make_data_undo(data))
        for owner in (handler, handler.weights, handler.seeds):
            undo.callback(vars(owner).update, dict(vars(owner)))
        undo.callback(handler.callbacks.make_undo(undo_hooks=True))
        handler.session = FitSession(handler.world, handler.parallel)
        handler.callbacks.detached_states, handler.callbacks.unclaimed = [], {}
        undo.callback(make_state_undo(handler))
        handler.weights.drop_ema()  # inside there is only the average that is asked for
        undo.callback(handler.parts.make_undo())
        undo.enter_context(preserve_module_state(handler.module, copy_to_host))
        if isinstance(loss, nn.Module):
            undo.enter_context(preserve_module_state(loss, copy_to_host))
        yield


def _make_data_undo(data: Iterable[DataSpec | None]) -> Callable[[], None]:
    """A function that puts loaders, and their generators, back where they are now."""
    specs = [spec for spec in data if spec is not None]
    # torch's DataLoader begins each pass anew; to ask torchdata's for its state would begin one
    loaders = [spec.data for spec in specs if isinstance(spec.data, Stateful)]
    loaders = [loader for loader in loaders if not isinstance(loader, DataLoader)]
    positions = [copy.deepcopy(loader.state_dict()) for loader in loaders]
    owners = [o for s in specs for o in (s.data, SimpleNamespace(**s.loader_kwargs))]
    generators = [UserGenerators(owner) for owner in owners]
    states = [generator.state_dict() for generator in generators]

    def undo() -> None:
        for loader, position in zip(loaders, positions, strict=True):
            loader.load_state_dict(position)
        for generator, state in zip(generators, states, strict=True):
            generator.restore_now(state)

    return undo
