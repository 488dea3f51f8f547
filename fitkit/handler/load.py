"""Build a handler from a checkpoint: as it was saved, or with its weights alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fitkit.checkpointing.bounded_build import bounded_build
from fitkit.checkpointing.catalog.latest import read_full
from fitkit.checkpointing.format.component_config import as_build_error
from fitkit.checkpointing.read_weights import check_weights, read_weights
from fitkit.checkpointing.storage import run_record
from fitkit.distributed.device_check import require_own_device
from fitkit.distributed.join_world import join_world
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.strategy import Strategy, as_strategy, make_parallel, timeout_of
from fitkit.distributed.world import World
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.rebuild import find_model, rebuild_parts
from fitkit.handler.state_dict import SkipParts, load_handler_state_dict
from fitkit.runtime.device import make_current, resolve_device

H = TypeVar("H", bound=BaseHandler)


def load_handler(
    handler_class: Callable[..., H],
    path: str | Path,
    device: torch.device | str | None,
    strategy: Strategy | str | None,
    model_class: Any,
    skip_parts: SkipParts,
    strict: bool,
    *,
    trust_code: bool,
) -> H:
    """Build a handler as it was saved; ``NNHandler.load`` describes the arguments.

    Raises:
        CheckpointError: the file cannot be used.
    """
    world, device, parallel = set_up_rank("load", device, strategy)
    with world.call("load", meets=False):
        state = read_full(Path(path), parallel.empty_dtensor)
        model, kwargs = find_model(state, path, model_class, trust_code=trust_code)
        is_ready = isinstance(model, nn.Module)
        bound = nullcontext() if is_ready else bounded_build(state["model_state_dict"])
        with bound, as_build_error("model", "pass model_class=<a ready module>"):
            kind = state["model_type"]
            handler = handler_class(model, device, model_type=kind, strategy=parallel, **kwargs)
        handler.model_code = state["model_code"]
        rebuild_parts(handler, state, skip_parts)
        load_handler_state_dict(handler, state, strict=strict, skip_parts=skip_parts)
        handler.run_identity.adopt(run_record.read(Path(path)))
        return handler


def load_weights(handler: BaseHandler, path: str | Path, *, strict: bool) -> None:
    """Load the weights of a checkpoint into a new handler, the averaged ones if there are any.

    Raises:
        CheckpointError: the file cannot be used, or its weights do not fit.
    """
    weights = read_weights(path, empty=handler.parallel.empty_dtensor)
    check_weights(handler.module, weights, strict=strict)
    handler.weights.load(weights, strict=strict)


def set_up_rank(
    verb: str,
    device: torch.device | str | None,
    strategy: Strategy | Parallel | str | None,
    *,
    use_distributed: bool | None = None,
) -> tuple[World, torch.device, Parallel]:
    """The ranks of the run, the device of this one, and how they train one model.

    ``NNHandler`` describes the arguments; ``verb`` is what all ranks call. The device becomes
    torch's current one.

    Raises:
        ConfigurationError: there is no such device or strategy, or two ranks share a device.
    """
    chosen = as_strategy(strategy)
    world = join_world(use_distributed, timeout=timeout_of(chosen))
    with world.call(verb):
        resolved = resolve_device(device, world.local_rank if world.size > 1 else None)
        require_own_device(world, resolved)
        make_current(resolved)
        return world, resolved, make_parallel(chosen, world, resolved)
