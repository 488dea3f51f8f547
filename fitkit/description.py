"""Parts as a checkpoint describes them, by class and arguments, and rebuilt from that."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.checkpointing.plain import TAG, from_plain, to_plain
from fitkit.checkpointing.references import name_of, resolve
from fitkit.checkpointing.stored_source import running
from fitkit.core.errors import CheckpointError, FitkitError
from fitkit.parts import Described

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView
    from fitkit.nn_handler import NNHandler

_TORCH_LOSSES = "torch.nn.modules.loss"


def describe(part: str, spec: Described | None) -> dict[str, Any]:
    """Class and arguments of a part under the keys of ``schema``."""
    if spec is None:
        return {f"{part}_class": None, f"{part}_kwargs": None}
    return {f"{part}_class": name_of(spec.cls), f"{part}_kwargs": _plain_kwargs(spec)}


def _plain_kwargs(spec: Described) -> dict[str, Any] | None:
    """The arguments; ``None`` if one cannot be stored, so that nobody rebuilds without it."""
    kwargs: dict[str, Any] = {}
    for name, value in spec.kwargs.items():
        if isinstance(value, type) and issubclass(value, nn.Module):
            kwargs[name] = {TAG: "class", "name": name_of(value)}
            continue
        try:
            kwargs[name] = to_plain(value, f"{spec.cls.__name__}({name}=)")
        except CheckpointError:
            return None
    return kwargs


def describe_loss(handler: HandlerView) -> dict[str, Any] | None:
    """A loss module of torch as class and arguments; other losses the program must set again."""
    loss = handler.parts.loss
    if loss is None or type(loss.function).__module__ != _TORCH_LOSSES:
        return None
    module = loss.function
    names = _parameters_of(type(module))  # type: ignore[arg-type]  # types are hashable
    return {
        "class": name_of(type(module)),
        "kwargs": {name: getattr(module, name) for name in names if hasattr(module, name)},
        "pass_epoch": loss.pass_epoch,
        "call_kwargs": _plain_kwargs(Described(type(module), loss.kwargs)),
    }


@functools.cache
def _parameters_of(cls: type[Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(cls).parameters)


def build_kwargs(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The stored arguments of a part, ready to be passed.

    Raises:
        CheckpointError: they could not be stored.
    """
    stored = state[f"{part}_kwargs"]
    if stored is None:
        raise CheckpointError(
            f"the arguments of {state[f'{part}_class']!r} could not be stored in the checkpoint: "
            f"pass model_class=<a ready module>."
            if part == "model"
            else f"the arguments of the {part} could not be stored in the checkpoint: pass "
            f"skip_{part}=True and call set_{part} yourself."
        )
    return {name: _argument(value) for name, value in stored.items()}


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and value.get(TAG) == "class":
        return resolve(value["name"], nn.Module, "pass model_class=<a ready module>")
    return from_plain(value)


def model_of(
    state: Mapping[str, Any], path: str | Path, given: Any, *, trust_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The model's class, or a ready model, and the arguments to build it with.

    Args:
        state: a full checkpoint.
        path: its file, for the error.
        given: the class or ready module to use instead of the one that is named.
        trust_code: run the stored source where the program lacks a class.

    Raises:
        CheckpointError: there is no class, or its arguments could not be stored.
    """
    if isinstance(given, nn.Module):
        return given, {}
    if given is None and state["model_class"] is None:
        raise CheckpointError(
            f"{str(path)!r} was saved with a ready module, so it does not say how to build "
            f"one: pass model_class=, a class or a ready module."
        )
    code = state["model_code"]
    if code is None or not trust_code:
        return _found_model(state, given)
    try:
        return _found_model(state, given, living=False)
    except CheckpointError:
        with running(code):
            return _found_model(state, given, living=False)


def _found_model(
    state: Mapping[str, Any], given: Any, *, living: bool = True
) -> tuple[Any, dict[str, Any]]:
    remedy = "pass model_class="
    if state["model_code"] is not None:
        remedy += (
            ", or trust_code=True, which runs the source of the model that is in the file: read it "
            "first (torch.load(path)['model_code'])"
        )
    if given is None:
        given = resolve(state["model_class"], nn.Module, remedy, living=living)
    return given, build_kwargs(state, "model")


@contextmanager
def rebuilding(part: str, remedy: str) -> Iterator[None]:
    """Inside ``with`` a part is built from stored arguments; whatever it says is told as ours."""
    try:
        yield
    except FitkitError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the {part} cannot be built with the arguments in the checkpoint: {error}. If you "
            f"trust the rest of the file, {remedy}."
        ) from error


def rebuild_parts(
    handler: NNHandler, state: Mapping[str, Any], *, optimizer: bool, scheduler: bool
) -> None:
    """Give a new handler the optimizer, scheduler and loss that a checkpoint describes.

    Args:
        handler: a handler that has only its model.
        state: a full checkpoint.
        optimizer: whether to build the optimizer.
        scheduler: whether to build the scheduler, which needs the optimizer.

    Raises:
        CheckpointError: a class is not here or of the wrong kind.
    """
    if state["optimizer_class"] is not None and optimizer:
        remedy = "pass skip_optimizer=True and call set_optimizer yourself"
        cls = resolve(state["optimizer_class"], Optimizer, remedy)
        with rebuilding("optimizer", remedy):
            handler.set_optimizer(cls, **build_kwargs(state, "optimizer"))
        if state["scheduler_class"] is not None and scheduler:
            _rebuild_scheduler(handler, state)
    saved = state["loss"]
    if saved is not None and saved.get("call_kwargs") is not None:
        remedy = "call set_loss_fn after loading"
        with rebuilding("loss", remedy):
            loss = resolve(saved["class"], nn.Module, remedy)
            handler.set_loss_fn(
                loss(**from_plain(saved["kwargs"])),
                saved["pass_epoch"],
                **from_plain(saved["call_kwargs"]),
            )


def _rebuild_scheduler(handler: NNHandler, state: Mapping[str, Any]) -> None:
    if state["scheduler_kwargs"] is None:
        warnings.warn(
            f"the arguments of the scheduler {state['scheduler_class']!r} could not be stored: "
            f"call set_scheduler before going on; its state is kept for it.",
            stacklevel=2,
        )
        return
    remedy = "pass skip_scheduler=True and call set_scheduler yourself"
    cls = resolve(state["scheduler_class"], LRScheduler, remedy)
    with rebuilding("scheduler", remedy):
        handler.set_scheduler(
            cls,
            interval=state.get("scheduler_interval", "epoch"),
            monitor=state.get("scheduler_monitor"),
            **build_kwargs(state, "scheduler"),
        )
