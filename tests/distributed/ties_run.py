"""A model with ties and frozen parameters, on one process or several: ties_run.py OUT"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fitkit
from fitkit.distributed.dtensor import full_tensor, is_dtensor

WIDTH = 160  # its matrices are large enough to be freed while the model is built


class Block(nn.Module):
    """Its first layer is frozen but for the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner.weight.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Add to what comes in."""
        self.calls += 1
        return x + self.outer(self.inner(x).tanh())


class Tied(nn.Module):
    """Ties inside a block, between two blocks, and between a block and what is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.head = nn.Linear(WIDTH, 1)
        self.blocks[1].outer.weight = self.blocks[0].outer.weight
        self.blocks[2].outer.weight = self.blocks[2].inner.weight
        self.last.weight = self.blocks[3].outer.weight
        self.register_buffer("table", torch.arange(WIDTH).cos(), persistent=False)
        self.double().apply(self.initialize)

    @staticmethod
    def initialize(part: nn.Module) -> None:
        """As models of transformers do it."""
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        """Through the blocks."""
        x = self.first(x) * self.table
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).tanh())


def values(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Whole copies; every rank must call it."""
    return {name: full_tensor(value).detach().clone() for name, value in tensors.items()}


def main(out: Path) -> None:
    """Leave what each rank begins and ends with."""
    found: dict[str, Any] = {}
    torch.manual_seed(17)
    before = torch.get_rng_state()
    handler = fitkit.NNHandler(Tied, "cpu", strategy="fsdp", seed=3)
    found["stream"] = bool(torch.equal(torch.get_rng_state(), before))
    found["initial"] = values(handler.module.state_dict())
    found["table"] = handler.module.table.clone()
    module = handler.module
    found["groups"] = [
        name for name, part in module.named_modules() if hasattr(part, "unshard") and name
    ]
    found["ties"] = [
        module.blocks[1].outer.weight is module.blocks[0].outer.weight,
        module.blocks[2].outer.weight is module.blocks[2].inner.weight,
        module.last.weight is module.blocks[3].outer.weight,
    ]
    handler.set_optimizer(torch.optim.AdamW, lr=0.01)
    handler.set_loss_fn(nn.MSELoss())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    size = 8 // handler.world.size
    history = handler.fit(data, epochs=2, batch_size=size, ema_decay=0.9, progress_bar=False)
    found["loss"] = history.history["loss"]
    found["final"] = values(handler.module.state_dict())
    averaged = handler.ema.weights()
    found["is_sharded"] = [
        all(map(is_dtensor, handler.module.parameters())),
        all(is_dtensor(it) for name, it in averaged.items() if "calls" not in name),
    ]
    found["averaged"] = values(averaged)
    handler.save(out / f"saved{handler.world.size}.pth")
    torch.manual_seed(100 + handler.world.rank)
    unseeded = fitkit.NNHandler(Tied, "cpu", strategy="fsdp")
    found["unseeded"] = values(unseeded.module.state_dict())
    ready = fitkit.NNHandler(Tied(), "cpu", strategy="fsdp")
    found["ready"] = values(ready.module.state_dict())
    name = "one" if handler.world.size == 1 else f"rank{handler.world.rank}"
    torch.save(found, out / f"{name}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
