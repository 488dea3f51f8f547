"""The state of a handler as one dict with the keys of a checkpoint, and loading it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from fitkit.handler import set_and_load
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.optimizer_groups import describe_groups
from fitkit.handler.optimizer_state import state_of
from fitkit.runtime.lazy_modules import require_values
from fitkit.runtime.module_state import make_weights_undo
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
        load: loads the decoded value; ``None``: it is read when the handler is rebuilt, with
            another key, or never.
        skip: fields of ``SkipParts`` with which it is not loaded.
        load_from: loads the value from the whole checkpoint, because it depends on other keys.
        save_pickled: as ``save``, for a file that is written now; parts may be pickled already.
        keeps_types: values of other types than a checkpoint holds come back with their types, or
            are refused; ``load`` decodes them, as it may need classes of the script of training.
    """

    save: Callable[[BaseHandler], Any]
    load: Callable[[BaseHandler, Any], None] | None = None
    skip: tuple[str, ...] = ()
    load_from: Callable[[BaseHandler, Mapping[str, Any]], None] | None = None
    keeps_types: bool = False
    save_pickled: Callable[[BaseHandler], Any] | None = None


def _load_sampler(handler: BaseHandler, saved: dict[str, Any] | None) -> None:
    handler.seeds.num_draws = (saved or {}).get("draws", 0)
    _load_generative("sampler", handler, saved)


def _load_generative(part: str, handler: BaseHandler, saved: dict[str, Any] | None) -> None:
    load_component(part, handler.parts.generative, handler.session.pending, saved)


def _keep_for_next_fit(key: str) -> Callable[[BaseHandler, Any], None]:
    return lambda handler, value: handler.session.pending.update({key: value})


def _set_in_session(name: str) -> Callable[[BaseHandler, Any], None]:
    return lambda handler, value: setattr(handler.session, name, value or {})


_WEIGHTS = ("model_state_dict", "loss_state_dict")

# Every key of a checkpoint, in the order in which they are written and loaded. A new key is one new
# entry here, and its type in ``schema.OPTIONAL_KEYS``: it loads ``None`` from older files, which
# lack it. ``schema.KEYS`` has only the keys without which a file is damaged.
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
        lambda h: h.weights.optimizer_mode.optimizer_state(),
        skip=("optimizer",),
        load_from=set_and_load.load_optimizer_part,
    ),
    "optimizer_groups": StateEntry(lambda h: describe_groups(h.parts)),
    "optimizer_is_evaluating": StateEntry(
        lambda h: h.weights.optimizer_mode.is_saved_evaluating(),
        lambda h, is_evaluating: h.weights.optimizer_mode.load(is_evaluating),
        ("optimizer",),
    ),
    "scheduler_class": StateEntry(lambda h: encode_class(h.parts.scheduler_spec)),
    "scheduler_kwargs": StateEntry(lambda h: encode_kwargs(h.parts.scheduler_spec)),
    "scheduler_interval": StateEntry(lambda h: h.parts.scheduler_interval),
    "scheduler_monitor": StateEntry(lambda h: h.parts.scheduler_monitor),
    "scheduler_strict": StateEntry(lambda h: h.parts.scheduler_strict),
    "scheduler_state_dict": StateEntry(
        lambda h: state_of(h.scheduler),
        skip=("optimizer", "scheduler"),
        load_from=set_and_load.load_scheduler_part,
    ),
    "scheduler_initial_state": StateEntry(
        lambda h: None if h.parts.scheduler_start is None else h.parts.scheduler_start.state
    ),
    "loss": StateEntry(lambda h: loss_config(h.parts.loss)),
    "loss_state_dict": StateEntry(
        lambda h: h.weights.loss_state() or h.session.pending.get("loss_state_dict"),
        lambda h, state: set_and_load.load_loss_part(h, "loss_state_dict", state),
    ),
    "scaler_state_dict": StateEntry(
        lambda h: h.session.scaler(), _keep_for_next_fit("scaler_state_dict")
    ),
    "ema_state_dict": StateEntry(
        lambda h: h.weights.ema_state(), lambda h, state: h.weights.load_ema(state), ("ema",)
    ),
    "loss_ema_state_dict": StateEntry(
        lambda h: h.weights.loss_ema_state() or h.session.pending.get("loss_ema_state_dict"),
        lambda h, state: set_and_load.load_loss_part(h, "loss_ema_state_dict", state),
        ("ema",),
    ),
    "evaluated_state_dict": StateEntry(lambda h: h.weights.averaged_by_optimizer()),
    "callback_states": StateEntry(
        lambda h: h.callbacks.state_dict(without=h.history),
        lambda h, states: h.callbacks.load_state_dict(states, h.device, decode),
        ("callbacks",),
        keeps_types=True,
    ),
    "history": StateEntry(
        lambda h: h.history.state_dict(),
        lambda h, state: h.history.load_state_dict(state),
        ("history",),
        save_pickled=lambda h: h.history.pickled_state(),
    ),
    "progress": StateEntry(
        lambda h: h.session.progress(h.state),
        lambda h, progress: h.session.load_progress(progress, h.state),
    ),
    "call_ends": StateEntry(lambda h: h.session.call_ends, _set_in_session("call_ends")),
    "config": StateEntry(lambda h: h.session.config, _set_in_session("config")),
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
    handler: BaseHandler, tensor_map: TensorMap = lambda tensor: tensor, *, for_file: bool = False
) -> dict[str, Any]:
    """The state of a handler with the keys of ``ENTRIES``, as tensors and plain types.

    Args:
        handler: the handler.
        tensor_map: is applied to each tensor; by default the live tensors are returned.
        for_file: with what is pickled already as ``PickledList``, to be written.

    Raises:
        CheckpointError: something cannot be saved, such as a lazy parameter before a first batch.
    """
    for module in handler.parts.trained_modules:
        require_values(module)
    state = {}
    for key, entry in ENTRIES.items():
        save = (for_file and entry.save_pickled) or entry.save
        name = f"state[{key!r}]"
        state[key] = encode(save(handler), name, tensor_map, keep_types=entry.keeps_types)
    return state


def make_state_undo(handler: BaseHandler) -> Callable[[], None]:
    """A function that puts back all that is in a checkpoint, except the states of callbacks.

    Lazy parameters without values have none afterwards. The copy that is kept for that is on the
    host: the device may have no room for it.
    """
    weights = handler.weights
    undo_weights = [make_weights_undo(module) for module in handler.parts.trained_modules]
    trained, weights.trained_before_restore = weights.trained_before_restore, None
    saved = {key: entry.save(handler) for key, entry in ENTRIES.items() if key not in _WEIGHTS}
    before = encode(saved, tensor_map=handler.parallel.on_local_tensors(copy_to_host))
    weights.trained_before_restore = trained

    def undo() -> None:
        for undo_module in undo_weights:
            undo_module()
        _load_entries(handler, before, SkipParts(callbacks=True))
        weights.trained_before_restore = trained

    return undo


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
    handler.session.part_changes = {}

    def check_optimizer() -> None:
        if not skip_parts.optimizer:
            set_and_load.require_optimizer(handler.parts, state)

    with as_checkpoint_error():
        handler.weights.check_loss(state.get("loss_state_dict"))
        weights = decode(state["model_state_dict"])
        handler.weights.load(weights, strict=strict, check=check_optimizer)
        _load_entries(handler, state, skip_parts)


def _load_entries(handler: BaseHandler, state: Mapping[str, Any], skip_parts: SkipParts) -> None:
    for key, entry in ENTRIES.items():
        is_skipped = any(getattr(skip_parts, name) for name in entry.skip)
        if is_skipped:
            continue
        if entry.load is not None:
            value = state.get(key)
            entry.load(handler, value if entry.keeps_types else decode(value))
        if entry.load_from is not None:
            entry.load_from(handler, state)


@contextmanager
def rollback_on_error(handler: BaseHandler) -> Iterator[None]:
    """Inside ``with`` another state is loaded; on an error the handler is as it was before."""
    with handler.session.gathered_from_ranks("fit"):
        undo_state = make_state_undo(handler)
    identity = replace(handler.run_identity)
    undo_callbacks, undo_session = handler.callbacks.make_undo(), handler.session.make_undo()
    try:
        yield
    except BaseException:
        undo_state()
        undo_callbacks()
        undo_session()
        handler.run_identity = identity
        raise
