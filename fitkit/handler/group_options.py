"""The options of an optimizer's parameter groups: copied, put back and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.tree import map_tensors
from fitkit.core.tree_diff import differing_leaves

Options = dict[str, Any]

# Flags of how a step is computed: those of the program stay when a state is loaded.
IMPLEMENTATION_FLAGS = ("fused", "foreach", "capturable", "differentiable")
MEMBERS = ("params", "param_names")


def options_of(optimizer: Optimizer) -> list[Options]:
    """A copy of each group's options, which are everything in it besides its parameters."""
    return [
        {
            key: map_tensors(Tensor.clone, value)
            for key, value in group.items()
            if key not in MEMBERS
        }
        for group in optimizer.param_groups
    ]


def put_options(optimizer: Optimizer, options: Iterable[Options]) -> None:
    """Give the first groups exactly these options; groups beyond them stay as they are."""
    for group, values in zip(optimizer.param_groups, options, strict=False):
        for key in group.keys() - values.keys() - {*MEMBERS}:
            del group[key]
        group.update(map_tensors(Tensor.clone, values))


def differs(first: Any, second: Any) -> bool:
    """Whether two values of an argument differ; 1 and 1.0 do not.

    >>> differs((1, 0.5), [1.0, 0.5]), differs(0.1, None)
    (False, True)
    """
    return any(
        not (_is_number(one) and _is_number(two) and one == two)
        for _, one, two in differing_leaves(first, second)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def change_options(
    optimizer: Optimizer, before: Iterable[Options | None], now: Iterable[Options]
) -> list[str]:
    """Give a loaded optimizer the options that the program changed, and say which.

    A learning rate that was reduced or raised while the run trained keeps its proportion.

    Args:
        optimizer: the optimizer with the options that the run had when it was saved.
        before: the options that the program gave each group when it was saved.
        now: the options that the program gives each group now.
    """
    sentences: list[str] = []
    for number, (group, old, new) in enumerate(
        zip(optimizer.param_groups, before, now, strict=False)
    ):
        for key in _changed_keys(old, new):
            where = f" of group {number}" if len(optimizer.param_groups) > 1 else ""
            sentences.append(_change(f"optimizer {key}{where}", old[key], new[key]))  # type: ignore[index]
            value = map_tensors(Tensor.clone, new[key])
            if key == "lr":
                value = _rescale(value, float(group[key]), float(old[key]))  # type: ignore[index]
            group[key] = value
    return sentences


def has_changed(before: Iterable[Options | None], now: Iterable[Options], keys: set[str]) -> bool:
    """Whether the program changed one of the options ``keys`` of a group."""
    pairs = zip(before, now, strict=False)
    return any(keys.intersection(_changed_keys(old, new)) for old, new in pairs)


def _changed_keys(old: Options | None, new: Options) -> list[str]:
    both = new.keys() & old.keys() - {*IMPLEMENTATION_FLAGS} if old else set()
    return [key for key in new if key in both and differs((old or {})[key], new[key])]


def _rescale(value: Any, current: float, initial: float) -> Any:
    """``value`` in the proportion of the rate in use to the one at the beginning."""
    if current == initial or not initial:
        return value
    return value.mul_(current / initial) if isinstance(value, Tensor) else value * current / initial


def _change(name: str, old: Any, new: Any) -> str:
    texts = (repr(v.tolist() if isinstance(v, Tensor) else v) for v in (old, new))
    return f"{name}: {' -> '.join(texts)}"


def text_of_change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for each key in which two mappings of arguments differ.

    >>> text_of_change("StepLR", {"step_size": 3}, {"step_size": 4})
    ['StepLR step_size: 3 -> 4']
    """
    return [
        _change(f"{name} {key}", old.get(key), new.get(key))
        for key in {**old, **new}
        if differs(old.get(key), new.get(key))
    ]
