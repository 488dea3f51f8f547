"""A model in parallel layers, on one process or several: tensor_parallel_run.py OUT CASE"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fitkit
from fitkit.distributed.dtensor import full_tensor

MESHES = {
    "1x2": {"shard": 1, "tp": 2},
    "2x2": {"shard": 2, "tp": 2},
    "2x1x2": {"replicate": 2, "shard": 1, "tp": 2},
    "one": None,
    "fsdp": None,
}


class Layer(nn.Module):
    """Two layers that are divided together."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Add to what comes in."""
        return x + self.down(self.up(x).tanh())


class Net(nn.Module):
    """Layers in a list."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Through the layers."""
        for layer in self.layers:
            x = self.dropout(layer(x))
        return x


def parallelize(module: nn.Module, mesh: Any) -> None:
    """The usual plan of a pair of layers."""
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for layer in module.layers:
        parallelize_module(layer, mesh["tp"], plan)


def strategy_of(case: str) -> Any:
    """How the ranks train."""
    mesh = MESHES[case]
    return "fsdp" if mesh is None else fitkit.FSDP(device_mesh=mesh, parallelize=parallelize)


def data() -> tuple[Tensor, Tensor]:
    """Samples of which the last batch is odd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(27, 8, generator=generator, dtype=torch.float64)
    return x, x.flip(1).tanh()


def main(out: Path, case: str) -> None:
    """Leave what each rank ends with; each file of the others is gone on from."""
    layout, _, dropout = case.partition("-")
    how: dict[str, Any] = {"strategy": strategy_of(layout), "seed": 3, "model_type": "regression"}
    how["dropout"] = 0.2 if dropout else 0.0
    handler = fitkit.NNHandler(Net, "cpu", **how)
    ranks = handler.data_world

    def prepare(one: fitkit.NNHandler) -> None:
        one.set_optimizer(torch.optim.AdamW, lr=0.01)
        one.set_loss_fn(nn.MSELoss())
        one.add_metric("error", _error)

    def fit(one: fitkit.NNHandler, **options: Any) -> dict[str, list[float]]:
        options |= {"batch_size": 8 // ranks.size, "ema_decay": 0.9, "progress_bar": False}
        options |= {"gradient_clipping_norm": 0.5, "gradient_accumulation_steps": 2}
        return one.fit(data(), epochs=3, validation_data=data(), **options).history

    prepare(handler)
    saver = fitkit.ModelCheckpoint(out / case / "{global_step:03d}.pth", save_freq=1)
    found: dict[str, Any] = {"history": fit(handler, callbacks=[saver])}
    weights = handler.module.state_dict()
    found["placements"] = {name: str(getattr(it, "placements", "")) for name, it in weights.items()}
    found["weights"] = {name: full_tensor(it).clone() for name, it in weights.items()}
    found["evaluated"] = handler.evaluate(data(), batch_size=5)
    found["predicted"] = handler.predict(data()[0], batch_size=4)
    unseeded = fitkit.NNHandler(Net, "cpu", strategy=how["strategy"], model_type="regression")
    prepare(unseeded)
    writer = fitkit.PredictionWriter(out / "written")
    for action in (lambda: handler.predict(data()[0], callbacks=[writer]), lambda: fit(unseeded)):
        if layout not in ("one", "fsdp"):
            try:
                action()
            except fitkit.ConfigurationError as error:
                found.setdefault("refused", []).append(str(error))
    found["samples"] = handler.state.samples_seen
    found["own"] = own_backward(fitkit.NNHandler(Net, "cpu", **{**how, "dropout": 0.0}))
    sources = [source for source in sorted(out.iterdir()) if source.is_dir()]
    for source in (it for it in sources if it.name.partition("-")[1:] == case.partition("-")[1:]):
        for path in sorted(source.glob("*.pth"))[2:6]:  # inside and at the end of an epoch
            again = fitkit.NNHandler(Net, "cpu", **how)
            prepare(again)
            history = fit(again, resume=path)
            weights = again.module.state_dict()
            found[f"{source.name}/{path.name}"] = {
                "history": history,
                "weights": {name: full_tensor(it).clone() for name, it in weights.items()},
                "samples": again.state.samples_seen,
            }
    torch.save(found, out / f"{case}-{handler.world.rank}.pth")


def own_backward(handler: fitkit.NNHandler) -> list[float]:
    """The losses of a step that runs its backward passes itself."""
    adam = torch.optim.Adam(handler.module.parameters(), lr=0.01)

    def step(handler: Any, batch: Any) -> fitkit.StepOutput:
        handler.model.zero_grad()
        loss = nn.functional.mse_loss(handler.model(batch[0]), batch[1])
        loss.backward()
        adam.step()
        return fitkit.StepOutput(loss.detach(), backward=False)

    handler.set_train_step(step)
    size = 8 // handler.data_world.size
    return handler.fit(data(), batch_size=size, epochs=3, progress_bar=False).history["loss"]


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
