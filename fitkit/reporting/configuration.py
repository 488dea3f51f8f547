"""The configuration of a run as rows of text, from a checkpoint or the state of a live run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fitkit.checkpointing.format.tags import TAG
from fitkit.core.formatting import dtype_name
from fitkit.reporting.checkpoint_state import as_mapping, learning_rates

Rows = list[list[str]]

_MOST_CHARACTERS = 300


def as_text(value: Any) -> str:
    """A value as text of bounded length.

    >>> as_text(0.001), as_text((1, "a")), as_text("Adam"), as_text({"lr": None})
    ('0.001', '(1, a)', 'Adam', '{lr: None}')
    """
    text = _text(value, depth=0)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _text(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        return f"tensor {_shape(value)} {dtype_name(value.dtype)}"
    if depth > 3:
        return "…"
    if isinstance(value, Mapping):
        if TAG in value:  # an encoded value, such as a dtype
            return str(value.get("name", value.get("value", value[TAG])))
        pairs = list(value.items())[:20]
        return "{" + ", ".join(f"{key}: {_text(item, depth + 1)}" for key, item in pairs) + "}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_text(item, depth + 1) for item in value[:20])
        more = ", …" if len(value) > 20 else ""
        return f"({inside}{more})" if isinstance(value, tuple) else f"[{inside}{more}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, type):
        return value.__qualname__
    return str(value)


def import_path(name: Any) -> str:
    """``"module:qualname"`` as one would import it.

    >>> import_path("torch.optim.adamw:AdamW"), import_path("__main__:Net"), import_path(None)
    ('torch.optim.AdamW', 'Net', 'not known')
    """
    if not isinstance(name, str):
        return "not known"
    module, _, qualname = name.partition(":")
    if module == "__main__" or not qualname:
        return qualname or module
    package = ".".join(part for part in module.split(".") if not part.startswith("_"))
    if module.startswith(("torch.optim.", "torch.nn.modules")):
        package = module.replace("torch.nn.modules", "torch.nn")
        package = package if "lr_scheduler" in package else ".".join(package.split(".")[:2])
    return f"{package}.{qualname}"


def sections(state: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Titles with rows of names and values.

    Args:
        state: the state by the keys of a checkpoint.
        facts: what ``HTMLReport`` recorded of the call of ``fit``.
    """
    loss, ema = as_mapping(state.get("loss")), as_mapping(state.get("ema_state_dict"))
    fit = [[str(name), as_text(value)] for name, value in as_mapping(facts.get("fit")).items()]
    fit += [["ema_decay", as_text(ema["decay"])]] if "decay" in ema else []
    fit += [["seed", as_text(state.get("seed"))]]
    rates = ", ".join(f"{rate:g}" for rate in learning_rates(state.get("optimizer_state_dict")))
    rows = {
        "Model": [*_component(state, "model"), ["kind", as_text(state.get("model_type"))]],
        "Optimizer": _component(state, "optimizer")
        + ([["learning rate now", rates]] if rates else []),
        "Scheduler": _scheduler(state),
        "Loss": [["class", import_path(loss.get("class"))], *_arguments(loss.get("kwargs"))],
        "Fit": fit,
    }
    return [{"title": title, "rows": rows} for title, rows in rows.items()]


def _component(state: Mapping[str, Any], part: str) -> Rows:
    name = state.get(f"{part}_class")
    if name is None:
        return [["class", "not known" if part == "model" else "none"]]
    return [["class", import_path(name)], *_arguments(state.get(f"{part}_kwargs"))]


def _arguments(kwargs: Any) -> Rows:
    pairs = as_mapping(kwargs).items()
    return [[str(name), as_text(value)] for name, value in pairs if value is not None]


def _scheduler(state: Mapping[str, Any]) -> Rows:
    rows = _component(state, "scheduler")
    if state.get("scheduler_class") is not None:
        rows.append(["interval", as_text(state.get("scheduler_interval"))])
        if state.get("scheduler_monitor") is not None:
            rows.append(["monitor", as_text(state["scheduler_monitor"])])
    return rows


def weights_by_module(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each module with weights: its name, the shapes and dtypes, and the number of values."""
    modules: dict[str, list[tuple[str, Tensor]]] = {}
    for name, value in state.get("model_state_dict", {}).items():
        if isinstance(value, Tensor):
            module, _, leaf = str(name).rpartition(".")
            modules.setdefault(module, []).append((leaf, value))
    return [
        {
            "module": module or "(the model itself)",
            "tensors": ", ".join(f"{leaf} {_shape(tensor)}" for leaf, tensor in tensors),
            "dtype": ", ".join(dict.fromkeys(dtype_name(tensor.dtype) for _, tensor in tensors)),
            "count": sum(tensor.numel() for _, tensor in tensors),
        }
        for module, tensors in modules.items()
    ]


def environment(state: Mapping[str, Any], facts: Mapping[str, Any]) -> Rows:
    """Versions and machine, as far as they are known."""
    versions = {"fitkit": state.get("fitkit_version"), "torch": state.get("pytorch_version")}
    known = {name: version for name, version in versions.items() if version}
    known.update(as_mapping(facts.get("environment")))
    return [[str(name), as_text(value)] for name, value in known.items()]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"  # noqa: RUF001
