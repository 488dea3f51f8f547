"""A small handler, and a callback that writes down everything it hears."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fitkit import Callback, Event, NNHandler


class Recorder(Callback):
    """Writes down each event with its number, where it has one."""

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


# ---- what stands in for CUDA graphs -------------------------------------------------------------

READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")


class Operations(TorchDispatchMode):
    """Notes every operation with the memory that it works on; whatever it changes is put back.

    As with CUDA: nothing has happened when the recording is done, a replay repeats operations and
    not Python, with the numbers that they had, on the same memory; and reading is an error.
    """

    def __init__(self):
        super().__init__()
        self.operations = []
        self.before = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name.startswith(READS):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        for tensor in written_by(function, args, kwargs):
            self.before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        result = function(*args, **kwargs)
        if name not in ("detach", "alias"):
            self.operations.append((function, args, kwargs, result))
        return result

    def undo(self):
        for tensor, values in self.before.values():
            tensor.copy_(values)


def written_by(function, args, kwargs):
    """The tensors that an operation writes to."""
    schema = function._schema.arguments
    given = {**dict(zip((a.name for a in schema), args, strict=False)), **kwargs}
    for argument in schema:
        # the schema does not tell that running statistics are written to
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written or argument.name.startswith("running_"):
            value = given.get(argument.name)
            yield from results_of(value)


def results_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    is_several = isinstance(value, (list, tuple))
    return [one for part in value for one in results_of(part)] if is_several else []


class CpuGraphs:
    """Records and replays on the CPU; counts what it does."""

    def __init__(self):
        self.recorded = self.replayed = self.as_usual = 0

    @contextmanager
    def aside(self):
        self.as_usual += 1
        yield

    def record(self, work, generators):
        self.recorded += 1
        streams = torch.get_rng_state()
        with Operations() as recorder:
            result = work()
        with torch.no_grad():
            recorder.undo()
        torch.set_rng_state(streams)

        def replay():
            self.replayed += 1
            with torch.no_grad():
                for function, args, kwargs, recorded in recorder.operations:
                    again = results_of(function(*args, **kwargs))
                    for old, new in zip(results_of(recorded), again, strict=True):
                        if old.data_ptr() != new.data_ptr():
                            old.copy_(new)

        return replay, result


@pytest.fixture
def graphs(monkeypatch):
    """What ``capture=True`` records with in this test."""
    graphs = CpuGraphs()
    monkeypatch.setattr("fitkit.capturing.make_graphs", lambda device: graphs)
    return graphs
