"""Recording: one step as it was recorded, and what a batch must be like to be put into it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from fitkit.core.tree import iterate_tensors, map_tensors
from fitkit.core.types import StepOutput


class Graphs(Protocol):
    """Who records: ``runtime.graphs.CudaGraphs``, or what stands in for it in tests."""

    def aside(self) -> AbstractContextManager[None]:
        """A context for steps that are not replayed."""

    def record(
        self, work: Callable[[], Any], generators: list[Generator]
    ) -> tuple[Callable[[], None], Any]:
        """Record ``work`` without effect; a function that replays it, and what it returned."""


@dataclass
class Recording:
    """A step whose tensors stay where they are.

    Attributes:
        inputs: where the batch is copied to.
        replay: carries the step out.
        output: what it leaves behind, written anew by each replay.
        before: the gradients that it adds to; ``None`` where there were none.
        gradients: the gradients that it leaves behind.
    """

    inputs: Any
    replay: Callable[[], None]
    output: StepOutput
    before: list[Tensor | None]
    gradients: list[Tensor | None]

    @torch.no_grad()
    def run(self, batch: Any, parameters: list[nn.Parameter], *, measured: bool) -> StepOutput:
        """The step on ``batch``; its output is a copy, as the next replay overwrites the original.

        Args:
            batch: one with the signature of the one that was recorded.
            parameters: whose gradients are those of the step afterwards.
            measured: whether anybody reads more of the output than losses.
        """
        torch._foreach_copy_([*iterate_tensors(self.inputs)], [*iterate_tensors(batch)])
        self.replay()
        give(parameters, self.gradients)
        output = self.output
        kept = replace(output, loss=output.loss.clone(), logs=_copy(dict(output.logs)))
        if measured:
            kept = replace(kept, outputs=_copy(output.outputs), targets=_copy(output.targets))
        return kept


def gradients_of(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The gradients, in order."""
    return [one.grad for one in parameters]


def give(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    """Make these the gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def fixed(batch: Any) -> Any:
    """A copy of a batch, for others to be copied into."""
    return _copy(batch)


def detached(output: StepOutput) -> StepOutput:
    """The same memory without the graph of gradients behind it."""
    logs = {name: _detach(value) for name, value in output.logs.items()}
    outputs, targets = _detach(output.outputs), _detach(output.targets)
    return replace(output, loss=output.loss.detach(), outputs=outputs, targets=targets, logs=logs)


def signature(batch: Any) -> Hashable | None:
    """What two batches have in common if one can be copied into the other.

    Returns:
        ``None`` for a batch that cannot be copied: it holds something else than plain tensors.
    """
    found = _signature(batch)
    tensors = [id(one) for one in iterate_tensors(batch)]
    return found if len(tensors) == len(set(tensors)) > 0 else None


def _signature(tree: Any) -> Hashable | None:
    if type(tree) is Tensor and tree.layout is torch.strided and not tree.requires_grad:
        return (tree.shape, tree.dtype, tree.device)
    if isinstance(tree, Mapping):
        parts = [_signature(value) for value in tree.values()]
        return None if None in parts else (type(tree), tuple(tree), tuple(parts))
    if isinstance(tree, (tuple, list)):
        parts = [_signature(value) for value in tree]
        return None if None in parts else (type(tree), tuple(parts))
    return None


def _copy(tree: Any) -> Any:
    return map_tensors(torch.clone, tree)


def _detach(tree: Any) -> Any:
    return map_tensors(Tensor.detach, tree)
