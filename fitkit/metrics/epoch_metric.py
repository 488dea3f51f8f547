"""EpochMetric: a function of all outputs and all targets of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fitkit.core.errors import CheckpointError, ConfigurationError, DataError, describe
from fitkit.core.state_placement import copy_to_host, detached_copy
from fitkit.core.tree import map_tensors
from fitkit.metrics.entries import loggable
from fitkit.metrics.outputs import main_output
from fitkit.metrics.ranks import Ranks


class EpochMetric:
    """A metric that is a function of all outputs and all targets, such as those of scikit-learn.

    They are kept until the end of the epoch, in the memory of the device; ``transform`` makes them
    smaller. Over several ranks the function gets the samples of all ranks on each, in the order in
    which a single process would see them. What is kept is part of a checkpoint that is made in the
    middle of an epoch.

    Args:
        function: ``(outputs, targets) -> value``, called once per epoch with tensors on the CPU,
            bfloat16 as float32. Outputs and targets of several batches are concatenated along the
            first dimension, tuples and dicts part by part, lists of other objects than tensors as
            lists. It returns a number, or a mapping or vector of numbers, logged as ``name_key``.
        transform: applied to the outputs of each batch, for instance
            ``lambda outputs: outputs.argmax(1)``.

    Raises:
        ConfigurationError: an argument is not callable.

    >>> from sklearn.metrics import roc_auc_score  # doctest: +SKIP
    >>> EpochMetric(lambda outputs, targets: roc_auc_score(targets, outputs))  # doctest: +SKIP
    """

    def __init__(
        self, function: Callable[[Any, Any], Any], transform: Callable[[Any], Any] | None = None
    ) -> None:
        for name, value in (("function", function), ("transform", transform)):
            if not callable(value) and not (name == "transform" and value is None):
                raise ConfigurationError(
                    f"EpochMetric: {name} must be a function, received {describe(value)}."
                )
        self.function = function
        self.transform = transform


class EpochMeter:
    """What an ``EpochMetric`` keeps of one pass.

    Each batch has a turn, its number among the batches of its rank, so that the batches of all
    ranks can be put into the order of the data.

    Args:
        name: name of the metric.
        metric: the metric.
    """

    STATE_KEYS: ClassVar = (frozenset({"turns", "form", "leaves"}),)

    def __init__(self, name: str, metric: EpochMetric) -> None:
        self._name = name
        self._metric = metric
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._turns: list[int] = []
        self._form: Any = None
        self._batches: list[list[Any]] = []

    def update(self, outputs: Any, targets: Any, turn: int) -> None:
        """Add one batch; nothing waits for the device.

        Raises:
            DataError: it cannot be kept, or not be joined with the batches before.
        """
        transform = self._metric.transform
        outputs = main_output(outputs) if transform is None else transform(outputs)
        leaves: list[Any] = []
        form = self._flatten((outputs, targets), leaves)
        if not self._turns:
            self._form = form
        elif form != self._form:
            raise _different(self._name, self._form, form)
        self._turns.append(turn)
        self._batches.append(leaves)

    def _flatten(self, tree: Any, leaves: list[Any]) -> Any:
        """Append copies of the leaves; return the nesting with a description of each leaf."""
        if isinstance(tree, Tensor):
            leaves.append(detached_copy(tree if tree.ndim else tree[None]))
            return f"tensor (batch{''.join(f', {size}' for size in tree.shape[1:])})"
        if isinstance(tree, Mapping):
            return {key: self._flatten(tree[key], leaves) for key in sorted(tree, key=str)}
        if isinstance(tree, list) and not any(isinstance(item, Tensor) for item in tree):
            leaves.append(map_tensors(detached_copy, tree))
            return "list"
        if isinstance(tree, (tuple, list)) and not isinstance(tree, PackedSequence):
            return [self._flatten(item, leaves) for item in tree]
        if tree is None:
            return None
        raise DataError(
            f"metric {self._name!r} keeps tensors, and tuples, lists and dicts of them, received "
            f"{describe(tree)}: choose what to keep with EpochMetric(function, transform)."
        )

    def compute(self, ranks: Ranks | None = None) -> dict[str, float]:
        """Its values by name, over the samples of all ranks; empty if nothing was added."""
        own = self.state_dict()
        states = [own] if ranks is None else ranks.gather_all(map_tensors(Tensor.cpu, own))
        merged = merge_epoch_states(self._name, states)
        if not merged["turns"]:
            return {}
        leaves = (_for_function(leaf["values"]) for leaf in merged["leaves"])
        outputs, targets = _rebuild(merged["form"], leaves)
        values = loggable(self._name, self._metric.function(outputs, targets))
        # every rank computes it from the same samples; that of one is taken for the same bits
        return values if ranks is None else ranks.gather_all(values)[0]

    def state_dict(self) -> dict[str, Any]:
        """The turns of its batches, and each leaf of all batches as one."""
        leaves = [
            {"sizes": [len(part) for part in parts], "values": _joined(list(parts))}
            for parts in zip(*self._batches, strict=True)
        ]
        return {"turns": list(self._turns), "form": self._form, "leaves": leaves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the batches, or raise ``CheckpointError``."""
        turns, leaves = state_dict["turns"], state_dict["leaves"]
        fits = all(len(leaf["sizes"]) == len(turns) for leaf in leaves)
        if not fits or any(sum(leaf["sizes"]) != len(leaf["values"]) for leaf in leaves):
            raise CheckpointError(
                f"the samples of metric {self._name!r} in the checkpoint are invalid: the file was "
                f"altered, use another."
            )
        self._turns, self._form = list(turns), state_dict["form"]
        parts = [_split(leaf) for leaf in leaves]
        self._batches = [[part[index] for part in parts] for index in range(len(turns))]


def merge_epoch_states(name: str, states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state with the batches of several ranks, which took turns.

    Raises:
        DataError: they cannot be joined.
    """
    states = [state for state in states if state["turns"]] or states[:1]
    first = states[0]
    if len(states) == 1:
        return first
    for state in states:
        if state["form"] != first["form"]:
            raise _different(name, first["form"], state["form"])
    turns = [(turn, *place) for *place, turn in _places(states)]
    order = [(rank, index) for _, rank, index in sorted(turns)]
    leaves = []
    for of_ranks in zip(*(state["leaves"] for state in states), strict=True):
        parts = [_split(leaf) for leaf in of_ranks]
        batches = [parts[rank][index] for rank, index in order]
        leaves.append({"sizes": list(map(len, batches)), "values": _joined(batches)})
    return {"turns": sorted(turn for turn, *_ in turns), "form": first["form"], "leaves": leaves}


def _places(states: list[dict[str, Any]]) -> Iterator[tuple[int, int, int]]:
    """Rank, index and turn of each batch."""
    for rank, state in enumerate(states):
        for index, turn in enumerate(state["turns"]):
            yield rank, index, turn


def _different(name: str, first: Any, second: Any) -> DataError:
    return DataError(
        f"metric {name!r} cannot join outputs and targets of different forms, {first} and "
        f"{second}: give them one form with EpochMetric(function, transform)."
    )


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    if len({part.device for part in parts}) > 1:  # those before a resume are on the host
        parts = [copy_to_host(part) for part in parts]
    return torch.cat(parts)


def _split(leaf: dict[str, Any]) -> list[Any]:
    values, sizes = leaf["values"], leaf["sizes"]
    if isinstance(values, Tensor):
        return list(torch.split(values, sizes))
    ends = list(accumulate(sizes))
    return [values[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _rebuild(form: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(form, dict):
        return {key: _rebuild(part, leaves) for key, part in form.items()}
    if isinstance(form, list):
        return tuple(_rebuild(part, leaves) for part in form)
    return None if form is None else next(leaves)


def _for_function(leaf: Any) -> Any:
    """On the CPU, in a type that NumPy has."""
    return map_tensors(lambda t: t.cpu().float() if t.dtype is torch.bfloat16 else t.cpu(), leaf)
