"""A small handler, and a callback that records every event."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import Callback, Event, NNHandler


class Recorder(Callback):
    """Records each event with its number, if it has one."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        for event in Event:
            setattr(self, event.value, self._writer(event))

    def _writer(self, event):
        def write(*args):
            number = args[0] if args and isinstance(args[0], int) else ""
            self.heard.append(f"{event.value.removeprefix('on_')} {number}".strip())

        return write

    def count(self, event: Event) -> int:
        return sum(line.split()[0] == event.value.removeprefix("on_") for line in self.heard)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make_recorder():
    return Recorder


@pytest.fixture
def make_handler():
    """A handler of a linear regression in float64, the same at each call."""

    def _make(
        model: nn.Module | None = None,
        *,
        lr: float = 0.1,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        loss=None,
        model_type: str = "regression",
        seed: int | None = 0,
    ) -> NNHandler:
        if model is None:
            torch.manual_seed(5)
            model = nn.Linear(3, 1, dtype=torch.float64)
        handler = NNHandler(model, "cpu", model_type=model_type, seed=seed)
        handler.set_optimizer(optimizer, lr=lr)
        handler.set_loss_fn(nn.MSELoss() if loss is None else loss)
        return handler

    return _make


@pytest.fixture
def make_data():
    """``(x, y)`` of a noisy linear function, float64."""

    def _make(size: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        return x, x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.1 * noise

    return _make


@pytest.fixture
def weights():
    """A flat copy of a handler's weights."""

    def _weights(handler: NNHandler) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in handler.module.parameters()])

    return _weights
