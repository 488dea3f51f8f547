"""CudaGraphs: work that CUDA records once and replays at the cost of one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from fitkit.core.errors import ConfigurationError

Result = TypeVar("Result")


class CudaGraphs:
    """CUDA graphs of one run, as torch's notes on CUDA describe "whole-network capture".

    Everything that computes what a recording computes, and is not replayed, runs on the stream on
    which recordings are made: the nodes that add up gradients remember the stream that they were
    first used on, and libraries set up their handles for each stream at their first use.

    Args:
        device: the accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside ``with`` work goes to the stream of recordings, after what was begun before."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(
        self, work: Callable[[], Result], generators: Iterable[torch.Generator]
    ) -> tuple[Callable[[], None], Result]:
        """Record ``work`` without carrying it out.

        Args:
            work: launches kernels on tensors that stay where they are, and reads nothing.
            generators: what it draws from, besides the device's own generator.

        Returns:
            a function that carries it out, and what ``work`` returned: tensors in memory that each
            replay writes anew.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            if generator.device.type == "cuda":
                graph.register_generator_state(generator)
        # threads that pin memory or write checkpoints go on meanwhile: that is no error
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


def make_graphs(device: torch.device) -> CudaGraphs:
    """The graphs of a run on ``device``.

    Raises:
        ConfigurationError: it has none.
    """
    if device.type != "cuda":
        raise ConfigurationError(
            f"capture=True records steps as CUDA graphs, and this handler is on {str(device)!r}: "
            f"leave capture out, or make the handler with device='cuda' where there is one."
        )
    return CudaGraphs(device)
