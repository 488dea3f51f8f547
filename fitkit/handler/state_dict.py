"""The state of a handler as one dict with the keys of a checkpoint, and loading it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.component_config import encode_class, encode_kwargs, loss_config
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.read_weights import check_weights
from fitkit.core.errors import as_checkpoint_error
from fitkit.core.state_placement import copy_to_host
from fitkit.core.tree import TensorMap
from fitkit.generative.state import load_component, sampler_config, sde_config
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.optimizer_state import load_optimizer, require_loadable, state_of
from fitkit.version import __version__


@dataclass(frozen=True)
class SkipParts:
    """Parts of a checkpoint that are left out when it is loaded."""

    optimizer: bool = False
    scheduler: bool = False
    history: bool = False
    callbacks: bool = False
    sampler_sde: bool = False
    ema: bool = False


class StateEntry(NamedTuple):
    """How the value of one key of a checkpoint is saved and loaded.

    Attributes:
        save: returns the value.
        load: loads the decoded value; ``None``: it is read when the handler is rebuilt, or never.
        skip: fields of ``SkipParts`` with which it is not loaded.
    """

    save: Callable[[BaseHandler], Any]
    load: Callable[[BaseHandler, Any], None] | None = None
    skip: tuple[str, ...] = ()


def _load_sampler(handler: BaseHandler, saved: dict[str, Any] | None) -> None:
    handler.seeds.num_draws = (saved or {}).get("draws", 0)
    _load_generative("sampler", handler, saved)


def _load_generative(part: str, handler: BaseHandler, saved: dict[str, Any] | None) -> None:
    load_component(part, handler.parts.generative, handler.session.pending, saved)


def _keep_for_next_fit(key: str) -> Callable[[BaseHandler, Any], None]:
    return lambda handler, value: handler.session.pending.update({key: value})


# Every key of a checkpoint, in the order in which they are written and loaded. A new key is one new
# entry here and nothing else: it loads ``None`` from older files, which lack it. ``schema.KEYS``
# has only the keys without which a file is damaged.
ENTRIES: dict[str, StateEntry] = {
    "format_version": StateEntry(lambda _: schema.FORMAT_VERSION),
    "fitkit_version": StateEntry(lambda _: __version__),
    "pytorch_version": StateEntry(lambda _: str(torch.__version__)),
    "model_class": StateEntry(lambda h: encode_class(h.parts.model_spec)),
    "model_kwargs": StateEntry(lambda h: encode_kwargs(h.parts.model_spec)),
    "model_type": StateEntry(lambda h: h.parts.model_type.value),
    "model_code": StateEntry(lambda h: h.model_code),
    "model_state_dict": StateEntry(lambda h: h.weights.training()),
    "optimizer_class": StateEntry(lambda h: encode_class(h.parts.optimizer_spec)),
    "optimizer_kwargs": StateEntry(lambda h: encode_kwargs(h.parts.optimizer_spec)),
    "optimizer_state_dict": StateEntry(
        lambda h: state_of(h.optimizer),
        lambda h, state: load_optimizer(h.optimizer, state),
        ("optimizer",),
    ),
    "scheduler_class": StateEntry(lambda h: encode_class(h.parts.scheduler_spec)),
    "scheduler_kwargs": StateEntry(lambda h: encode_kwargs(h.parts.scheduler_spec)),
    "scheduler_interval": StateEntry(lambda h: h.parts.scheduler_interval),
    "scheduler_monitor": StateEntry(lambda h: h.parts.scheduler_monitor),
    "scheduler_state_dict": StateEntry(
        lambda h: state_of(h.scheduler),
        lambda h, state: h.session.load_scheduler(h.parts, state),
        ("optimizer", "scheduler"),
    ),
    "loss": StateEntry(lambda h: loss_config(h.parts.loss)),
    "scaler_state_dict": StateEntry(
        lambda h: h.session.scaler(), _keep_for_next_fit("scaler_state_dict")
    ),
    "ema_state_dict": StateEntry(
        lambda h: state_of(h.ema), lambda h, state: h.weights.load_ema(state), ("ema",)
    ),
    "callback_states": StateEntry(
        lambda h: h.callbacks.state_dict(without=h.history),
        lambda h, states: h.callbacks.load_state_dict(states, h.device),
        ("callbacks",),
    ),
    "history": StateEntry(
        lambda h: h.history.state_dict(),
        lambda h, state: h.history.load_state_dict(state),
        ("history",),
    ),
    "progress": StateEntry(
        lambda h: h.session.progress(h.state),
        lambda h, progress: h.session.load_progress(progress, h.state),
    ),
    "rng": StateEntry(
        lambda h: h.session.streams(h.device, is_seeded=h.seeds.given is not None),
        _keep_for_next_fit("rng"),
    ),
    "loader": StateEntry(lambda h: h.session.positions(), _keep_for_next_fit("loader")),
    "seed": StateEntry(lambda h: h.seeds.given, lambda h, seed: h.seeds.start_from(seed)),
    "data_seed": StateEntry(lambda h: h.seeds.data, lambda h, seed: h.seeds.set_data(seed)),
    "sampler": StateEntry(
        lambda h: sampler_config(h.parts.generative, h.session.pending, h.seeds.num_draws),
        _load_sampler,
        ("sampler_sde",),
    ),
    "sde": StateEntry(
        lambda h: sde_config(h.parts.generative, h.session.pending),
        lambda h, saved: _load_generative("sde", h, saved),
        ("sampler_sde",),
    ),
}


def handler_state_dict(
    handler: BaseHandler, tensor_map: TensorMap = lambda tensor: tensor
) -> dict[str, Any]:
    """The state of a handler with the keys of ``ENTRIES``, as tensors and plain types.

    ``tensor_map`` is applied to each tensor; by default the live tensors are returned.
    """
    state = {key: entry.save(handler) for key, entry in ENTRIES.items()}
    encoded: dict[str, Any] = encode(state, tensor_map=tensor_map)
    return encoded


def load_handler_state_dict(
    handler: BaseHandler,
    state: dict[str, Any],
    *,
    strict: bool = True,
    skip_parts: SkipParts | None = None,
) -> None:
    """Load what ``handler_state_dict`` returned; an error may leave the handler with part of it.

    Raises:
        CheckpointError: something does not fit; the message names it.
    """
    skip_parts = skip_parts or SkipParts()
    check_weights(handler.module, state["model_state_dict"], strict=strict)
    if handler.optimizer is not None and not skip_parts.optimizer:
        require_loadable(handler.optimizer, state)
    with as_checkpoint_error():
        _load(handler, state, strict=strict, skip_parts=skip_parts)


def _load(
    handler: BaseHandler, state: Mapping[str, Any], *, strict: bool, skip_parts: SkipParts
) -> None:
    handler.weights.load(decode(state["model_state_dict"]), strict=strict)
    for key, entry in ENTRIES.items():
        is_skipped = any(getattr(skip_parts, name) for name in entry.skip)
        if entry.load is not None and not is_skipped:
            entry.load(handler, decode(state.get(key)))


@contextmanager
def rollback_on_error(handler: BaseHandler) -> Iterator[None]:
    """Inside ``with`` another state is loaded; on an error the handler is as it was before.

    The copy that is kept for that is on the host: the device may have no room for it.
    """
    with handler.session.gathered_from_ranks():
        before = handler_state_dict(handler, handler.parallel.on_local_tensors(copy_to_host))
    calls_made = handler.calls_made
    undo_callbacks, undo_session = handler.callbacks.make_undo(), handler.session.make_undo()
    try:
        yield
    except BaseException:
        _load(handler, before, strict=True, skip_parts=SkipParts(callbacks=True))
        undo_callbacks()
        undo_session()
        handler.calls_made = calls_made
        raise
