"""How a handler looks at a prompt and in a notebook; nothing is computed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitkit.core.html import Html, table
from fitkit.core.state import Phase
from fitkit.data.batches import describe
from fitkit.parts import Described

if TYPE_CHECKING:
    from fitkit.handler_view import HandlerView


def as_text(handler: HandlerView) -> str:
    """A handler on one line."""
    parts = handler.parts
    facts = [
        type(handler.module).__name__,
        str(parts.device),
        *(_named(spec) for spec in (parts.optimizer_spec, parts.scheduler_spec) if spec),
        _where(handler),
    ]
    return f"<{type(handler).__name__}: {', '.join(facts)}>"


def as_html(handler: HandlerView) -> str:
    """A handler as a table: what it is made of, what is missing, and how far it has come."""
    parts = handler.parts
    loss = None if parts.loss is None else parts.loss.function
    facts = {
        "model": f"{type(handler.module).__name__}, {_size(handler)}, on {parts.device}",
        "optimizer": _named(parts.optimizer_spec) or "not set: set_optimizer",
        "scheduler": _named(parts.scheduler_spec),
        "loss": _name_of(loss) or ("" if parts.train_step else "not set: set_loss_fn"),
        "training step": _name_of(parts.train_step),
        "metrics": ", ".join(parts.metrics),
        "training data": _kind(parts.train_data),
        "validation data": _kind(parts.validation_data),
        "callbacks": ", ".join(c.name for c in handler.callbacks if c is not handler.history),
        "trained": _where(handler),
    }
    rows = [[name, fact] for name, fact in facts.items() if fact]
    history = Html(handler.history._repr_html_() if handler.history.epoch else "")
    return f"{table(rows)}{history}"


def _size(handler: HandlerView) -> str:
    number = sum(one.numel() for one in handler.module.parameters())
    return f"{number:,} parameters"


def _named(spec: Described | None) -> str:
    if spec is None:
        return ""
    arguments = ", ".join(f"{name}={_short(value)}" for name, value in spec.kwargs.items())
    return f"{spec.cls.__name__}({arguments})"


def _short(value: Any) -> str:
    """Plain arguments as they are; of others, whose text may be long, the kind."""
    plain = isinstance(value, (int, float, str, bool, type(None)))
    pair = isinstance(value, tuple) and all(isinstance(one, (int, float)) for one in value)
    return repr(value) if plain or pair else f"<{type(value).__name__}>"


def _name_of(function: Any) -> str:
    return "" if function is None else getattr(function, "__name__", type(function).__name__)


def _kind(spec: Any) -> str:
    return "" if spec is None else describe(spec.data)


def _where(handler: HandlerView) -> str:
    state = handler.state
    inside = f" and {state.batch} batches" if state.phase is Phase.TRAIN else ""
    return f"{state.epoch} epochs{inside}, step {state.global_step}"
