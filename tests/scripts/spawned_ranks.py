"""Two ranks that ``torch.multiprocessing.spawn`` starts, twice in each process.

    python tests/scripts/spawned_ranks.py OUT BACKEND

Each time the program creates and destroys its own group. Rank r leaves ``OUT/rank<r>.json``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fitkit import FitkitError, ModelCheckpoint, NNHandler, on_rank

X = torch.arange(192.0).reshape(64, 3) / 192
Y = X.sum(1, keepdim=True)


def make() -> NNHandler:
    """A handler, ready to train."""
    torch.manual_seed(0)
    handler = NNHandler(nn.Linear(3, 1), "cpu", seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    return handler


def train(out: Path) -> dict[str, Any]:
    """What a handler finds."""
    handler, world = make(), make().world
    saver = ModelCheckpoint(out / f"of_rank{world.rank}" / "last.pth")
    size = 8 // world.size
    history = handler.fit((X, Y), batch_size=size, progress_bar=False, callbacks=[saver])
    place = [world.rank, world.size, world.local_rank]
    return {"place": place, "losses": history.train_losses, "ran": on_rank(1)(lambda: 1)()}


def run(rank: int, out: Path, backend: str) -> None:
    """One rank."""
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    before = make()
    found: dict[str, Any] = {"before": before.world.size, "joined": []}
    for time in range(2):
        url = f"file://{out.resolve()}/group{time}"
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=2)
        handler = make()
        found["joined"].append(train(out))
        dist.destroy_process_group()
        try:
            handler.evaluate((X, Y))
        except FitkitError as error:
            found["after"] = str(error)
    found["alone"] = [make().world.size, before.evaluate((X, Y))["loss"]]
    (out / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "PMI_"))]:
        del os.environ[name]
    mp.spawn(run, (Path(sys.argv[1]), sys.argv[2]), 2)
