"""Peak memory of a rank that builds, trains, saves and loads: python memory_run.py OUT [BYTES]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fitkit

WIDTH, BLOCKS = 2048, 20  # blocks of 16 MB each, 336 MB together


class Block(nn.Module):
    """One layer with initial values of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add to what comes in."""
        return x + self.layer(x).tanh()


class Deep(nn.Module):
    """A list of layers whose values are changed when all are built."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.register_buffer("scale", torch.full((WIDTH,), 0.5), persistent=False)
        self.apply(self.initialize)

    def initialize(self, part: nn.Module) -> None:
        """As models of transformers do it."""
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.01)
            part.weight.data.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Through the blocks."""
        x = self.first(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return x.mean(1, keepdim=True)


def peak() -> int:
    """The most memory that this process has held since ``reset_peak``, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def reset_peak() -> None:
    """Let ``peak`` begin with what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(out: Path) -> None:
    """Leave the peaks of this rank, and sums of the weights on rank 0."""
    found = {}
    fitkit.NNHandler(nn.Linear, "cpu", strategy="fsdp", seed=0, in_features=2, out_features=2)
    reset_peak()
    before = peak()
    handler = fitkit.NNHandler(Deep, "cpu", strategy="fsdp", seed=3)
    found["built"] = peak() - before
    handler.save(out / "saved.pth")
    del handler
    reset_peak()
    before = peak()
    handler = fitkit.NNHandler.load(out / "saved.pth", "cpu", strategy="fsdp")
    found["loaded"] = peak() - before
    del handler
    reset_peak()
    before = peak()
    handler = fitkit.NNHandler.initialize_from_checkpoint(
        out / "saved.pth", Deep, device="cpu", strategy="fsdp"
    )
    found["initialized"] = peak() - before
    name = "one" if handler.world.size == 1 else f"rank{handler.world.rank}"
    (out / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
