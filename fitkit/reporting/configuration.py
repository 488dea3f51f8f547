"""What a run is made of, as rows to read: out of a checkpoint, or of what stands for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fitkit.checkpointing.plain import TAG
from fitkit.checkpointing.skeleton import dtype_name

Rows = list[list[str]]

_LONGEST_TEXT = 300


def as_mapping(value: Any) -> Mapping[Any, Any]:
    """``value``, or nothing if it is no mapping: a file decides on it."""
    return value if isinstance(value, Mapping) else {}


def by_name(states: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Entries in the order of their names: that of callbacks in their list means nothing."""
    return sorted(((str(key), entry) for key, entry in states.items()), key=lambda pair: pair[0])


def shown(value: Any) -> str:
    """A value as people read it, of bounded length.

    >>> shown(0.001), shown((1, "a")), shown("Adam"), shown({"lr": None})
    ('0.001', '(1, a)', 'Adam', '{lr: None}')
    """
    text = _text(value, depth=0)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _text(value: Any, depth: int) -> str:
    if isinstance(value, Tensor):
        return f"tensor {_shape(value)} {_dtype(value)}"
    if depth > 3:
        return "…"
    if isinstance(value, Mapping):
        if TAG in value:  # how a value that is not plain stands in a file
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


def class_name(name: Any) -> str:
    """``"module:qualname"`` as people write it.

    >>> class_name("torch.optim.adamw:AdamW"), class_name("__main__:Net"), class_name(None)
    ('torch.optim.AdamW', 'Net', 'not known')
    """
    if not isinstance(name, str):
        return "not known"
    module, _, qualname = name.partition(":")
    if module == "__main__" or not qualname:
        return qualname or module
    package = ".".join(part for part in module.split(".") if not part.startswith("_"))
    if module.startswith(("torch.optim.", "torch.nn.modules")):  # as they are imported
        package = module.replace("torch.nn.modules", "torch.nn")
        package = package if "lr_scheduler" in package else ".".join(package.split(".")[:2])
    return f"{package}.{qualname}"


def sections(state: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Titles with rows of names and values.

    Args:
        state: by the keys of a checkpoint.
        facts: what ``HTMLReport`` noted of the call of ``fit``.
    """
    loss, average = as_mapping(state.get("loss")), as_mapping(state.get("ema_state_dict"))
    fit = [[str(name), shown(value)] for name, value in as_mapping(facts.get("fit")).items()]
    fit += [["ema_decay", shown(average["decay"])]] if "decay" in average else []
    fit += [["seed", shown(state.get("seed"))]]
    found = [
        ("Model", [*_part(state, "model"), ["kind", shown(state.get("model_type"))]]),
        ("Optimizer", _part(state, "optimizer") + _groups(state.get("optimizer_state_dict"))),
        ("Scheduler", _scheduler(state)),
        ("Loss", [["class", class_name(loss.get("class"))], *_arguments(loss.get("kwargs"))]),
        ("Fit", fit),
    ]
    return [{"title": title, "rows": rows} for title, rows in found]


def _part(state: Mapping[str, Any], part: str) -> Rows:
    name, kwargs = state.get(f"{part}_class"), state.get(f"{part}_kwargs")
    if name is None:
        return [["class", "not known" if part == "model" else "none"]]
    return [["class", class_name(name)], *_arguments(kwargs)]


def _arguments(kwargs: Any) -> Rows:
    if not isinstance(kwargs, Mapping):
        return []
    return [[str(name), shown(value)] for name, value in kwargs.items() if value is not None]


def _groups(state: Any) -> Rows:
    """What the optimizer works with now: the learning rate of each group."""
    groups = learning_rates(state)
    return [["learning rate now", ", ".join(f"{rate:g}" for rate in groups)]] if groups else []


def learning_rates(state: Any) -> list[float]:
    """The learning rate of each parameter group of a saved optimizer, as far as it is a number."""
    groups = as_mapping(state).get("param_groups")
    rates = [as_mapping(one).get("lr") for one in (groups if isinstance(groups, list) else ())]
    return [float(rate) for rate in rates if isinstance(rate, (int, float))]


def _scheduler(state: Mapping[str, Any]) -> Rows:
    rows = _part(state, "scheduler")
    if state.get("scheduler_class") is not None:
        rows.append(["interval", shown(state.get("scheduler_interval"))])
        if state.get("scheduler_monitor") is not None:
            rows.append(["monitor", shown(state["scheduler_monitor"])])
    return rows


def weights_by_module(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tensors of the model, those of one module together: name, shapes, how many values."""
    modules: dict[str, list[tuple[str, Tensor]]] = {}
    for name, value in state.get("model_state_dict", {}).items():
        if isinstance(value, Tensor):
            module, _, leaf = str(name).rpartition(".")
            modules.setdefault(module, []).append((leaf, value))
    return [
        {
            "module": module or "(the model itself)",
            "tensors": ", ".join(f"{leaf} {_shape(tensor)}" for leaf, tensor in tensors),
            "dtype": ", ".join(dict.fromkeys(_dtype(tensor) for _, tensor in tensors)),
            "count": sum(tensor.numel() for _, tensor in tensors),
        }
        for module, tensors in modules.items()
    ]


def environment(state: Mapping[str, Any], facts: Mapping[str, Any]) -> Rows:
    """Versions and machine, as far as they are known."""
    told = as_mapping(facts.get("environment"))
    noted = {str(name): shown(value) for name, value in told.items()}
    versions = {"fitkit": state.get("fitkit_version"), "torch": state.get("pytorch_version")}
    found = {**{name: shown(value) for name, value in versions.items() if value}, **noted}
    return [[name, value] for name, value in found.items()]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"  # noqa: RUF001


def _dtype(tensor: Tensor) -> str:
    return dtype_name(tensor.dtype)
