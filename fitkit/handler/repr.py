"""The ``repr`` of a handler, and its table in a notebook."""

from __future__ import annotations

from typing import Any

from fitkit.core.component_spec import ComponentSpec
from fitkit.core.errors import describe
from fitkit.core.html import Html, table
from fitkit.core.state import Phase
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.parts import Parts
from fitkit.runtime.lazy_modules import has_values


def as_text(handler: BaseHandler) -> str:
    """A handler on one line."""
    parts = handler.parts
    facts = [
        type(handler.module).__name__,
        str(parts.device),
        *(spec_text(spec) for spec in (parts.optimizer_spec, parts.scheduler_spec) if spec),
        _position_text(handler),
    ]
    return f"<{type(handler).__name__}: {', '.join(facts)}>"


def as_html(handler: BaseHandler) -> str:
    """A handler as a table: its parts, what is missing, how far it is trained, and its history."""
    parts = handler.parts
    loss = None if parts.loss is None else parts.loss.function
    size = sum(p.numel() for p in handler.module.parameters() if has_values(p))
    facts = {
        "model": f"{type(handler.module).__name__}, {size:,} parameters, on {parts.device}",
        "optimizer": spec_text(parts.optimizer_spec) or "not set: set_optimizer",
        "scheduler": spec_text(parts.scheduler_spec),
        "loss": _function_name(loss) or _other_loss(parts),
        "training step": _function_name(parts.train_step),
        "metrics": ", ".join(parts.metrics),
        "training data": _data_text(parts.train_data),
        "validation data": ", ".join(
            f"{name}: {_data_text(spec)}" if name else _data_text(spec)
            for name, spec in parts.validation_data.items()
        ),
        "callbacks": ", ".join(c.name for c in handler.callbacks if c is not handler.history),
        "trained": _position_text(handler),
    }
    rows = [[name, fact] for name, fact in facts.items() if fact]
    history = Html(handler.history._repr_html_() if handler.history.epoch else "")
    return f"{table(rows)}{history}"


def spec_text(spec: ComponentSpec | None) -> str:
    """A component as ``Class(argument=value)``; empty for none."""
    if spec is None:
        return ""
    arguments = ", ".join(f"{name}={_argument_text(value)}" for name, value in spec.kwargs.items())
    return f"{spec.cls.__name__}({arguments})"


def _argument_text(value: Any) -> str:
    """A plain value; for others, whose ``repr`` may be long, their class."""
    is_plain = isinstance(value, (int, float, str, bool, type(None)))
    is_pair = isinstance(value, tuple) and all(isinstance(item, (int, float)) for item in value)
    return repr(value) if is_plain or is_pair else f"<{type(value).__name__}>"


def _other_loss(parts: Parts) -> str:
    if parts.has_model_loss:
        return "of the model, or set_loss_fn"
    return "" if parts.train_step else "not set: set_loss_fn"


def _function_name(function: Any) -> str:
    return "" if function is None else getattr(function, "__name__", type(function).__name__)


def _data_text(spec: Any) -> str:
    return "" if spec is None else describe(spec.data)


def _position_text(handler: BaseHandler) -> str:
    state = handler.state
    inside = f" and {state.batch} batches" if state.phase is Phase.TRAIN else ""
    return f"{state.epoch} epochs{inside}, step {state.global_step}"
