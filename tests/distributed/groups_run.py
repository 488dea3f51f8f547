"""What each rank of ``test_groups.py`` does: python groups_run.py FOLDER PLAN"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import fitkit
from fitkit.core.errors import FitkitError
from fitkit.distributed.join_world import current_world

RANK = int(os.environ.get("RANK", "0"))
HERE = Path(__file__).parent
TIMEOUT = 1.5


def load(path: Path) -> Any:
    """A module of the tests, which are no package."""
    specification = importlib.util.spec_from_file_location(f"fitkit_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def prepared(handler: fitkit.NNHandler) -> fitkit.NNHandler:
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    return handler


def make(device: str, strategy: Any) -> fitkit.NNHandler:
    """A handler; other ranks begin with other weights, which those of rank 0 replace."""
    torch.manual_seed(RANK)
    handler = fitkit.NNHandler(make_model(), device, strategy=strategy)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    return prepared(handler)


def fit(handler: fitkit.NNHandler, epochs: int = 2) -> dict[str, list[float]]:
    """Windows of three batches, of which an epoch's last one is short."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(58, 6, generator=generator)
    data = (x, (x.sum(1) > 0).long())
    how = {"batch_size": 8, "gradient_accumulation_steps": 3, "ema_decay": 0.9, "seed": 1}
    return handler.fit(data, epochs=epochs, progress_bar=False, **how).history


def whole_weights(handler: fitkit.NNHandler) -> list[list[float]]:
    """Gathered by hand: torch's own way to gather a piece knows no group written in Python."""
    own = [_local(one) for one in handler.module.state_dict().values()]
    if not handler.parallel.is_sharded:
        return own
    parts = zip(*current_world().gather_all(own), strict=True)
    return [list(itertools.chain(*one)) for one in parts]


def outcome(action: Callable[[], Any]) -> dict[str, Any]:
    """What an action raised, and how long it took."""
    began = time.monotonic()
    try:
        action()
        error = None
    except (FitkitError, RuntimeError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {"error": error, "seconds": time.monotonic() - began}


def train(device: str, strategy: Any) -> dict[str, Any]:
    """A run, with all of its weights."""
    handler = make(device, strategy)
    history = fit(handler)
    places = {str(one.device) for one in handler.module.parameters()}
    return {"history": history, "weights": whole_weights(handler), "places": sorted(places)}


def resume(device: str, folder: Path) -> dict[str, Any]:
    """A sharded run that is saved and goes on, here and from the file."""
    handler = make(device, "fsdp")
    fit(handler)
    handler.save(folder / "saved.pth")
    model = make_model()
    again = fitkit.NNHandler.load(folder / "saved.pth", device, model_class=model, strategy="fsdp")
    prepared(again)
    logs = [fit(one, epochs=1) for one in (handler, again)]
    moments = [one for state in again.optimizer.state.values() for one in state.values()]
    meshes = {one.device_mesh.device_type for one in moments if hasattr(one, "device_mesh")}
    return {
        "same logs": logs[0]["loss"][-1] == logs[1]["loss"][-1],
        "same weights": whole_weights(handler) == whole_weights(again),
        "same averages": [_local(one) for one in handler.weights.evaluated().values()]
        == [_local(one) for one in again.weights.evaluated().values()],
        "meshes of moments": sorted(meshes),
        "steps": sorted({str(state["step"].device) for state in again.optimizer.state.values()}),
    }


def _local(tensor: Any) -> list[float]:
    here = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return here.cpu().flatten().tolist()


def wait_for_a_rank_that_sleeps() -> dict[str, Any]:
    """Rank 1 comes too late to a collective."""
    if RANK == 1:
        time.sleep(TIMEOUT + 2.5)
        return {}
    return outcome(lambda: current_world().gather_all("here"))


def wait_in_a_kernel_for_a_rank_that_fails(device: str) -> dict[str, Any]:
    """Rank 1 fails while rank 0 waits for a collective of the device."""
    world = current_world()
    world.gather_all("both are here")
    if RANK == 1:
        time.sleep(0.5)
        failed = str(world.fail(ValueError("boom on purpose")))
        time.sleep(4)  # its end would break the connections of the stand-in, unlike those of NCCL
        return {"error": failed}
    found = outcome(lambda: world.copy_from_main([torch.ones(2, device=device)]))
    first = world.fail(RuntimeError(found["error"]))
    later = outcome(lambda: world.gather_all("anything"))
    return {**found, "first": str(first), "later": later["error"]}


def wait_on_the_host_for_a_rank_that_fails() -> dict[str, Any]:
    """Rank 1 fails, and its process goes on, while rank 0 waits for a collective of the host."""
    world = current_world()
    world.gather_all("both are here")
    if RANK == 1:
        failed = str(world.fail(ValueError("boom on purpose")))
        time.sleep(3)
        return {"error": failed}
    found = outcome(lambda: world.gather_all("anything"))
    return {**found, "first": str(world.fail(RuntimeError(found["error"])))}


def on_a_device_group(folder: Path) -> None:
    """The default group is the program's, and NCCL's alone."""
    sim, device_group = load(HERE.parent / "accelerator" / "sim.py"), load(HERE / "device_group.py")
    with sim.switched_on():
        device_group.register()
        device_group.prepare_for_fsdp(sim)
        dist.init_process_group("sim:standin")
        group = dist.group.WORLD
        tell(folder, "shared", outcome(lambda: make("sim:0", "ddp")))
        os.environ["SIM_VISIBLE_DEVICES"] = str(RANK)
        tell(folder, "ddp", train("sim:0", "ddp"))
        tell(folder, "fsdp", train("sim:0", "fsdp"))
        tell(folder, "resume", resume("sim:0", folder))
        tell(folder, "seen", {"collectives": sorted(set(group.seen))})
        tell(folder, "failed", wait_in_a_kernel_for_a_rank_that_fails("sim:0"))
        tell(folder, "aborted", {"times": group.aborted})


def on_a_group_without_host_tensors(folder: Path) -> None:
    """The default group takes tensors of CUDA alone, and training is on the CPU."""
    dist.init_process_group("cuda:gloo")
    tell(folder, "ddp", train("cpu", "ddp"))
    tell(folder, "fsdp", train("cpu", "fsdp"))
    tell(folder, "resume", resume("cpu", folder))
    make("cpu", fitkit.DDP(timeout=TIMEOUT))
    tell(folder, "late", wait_for_a_rank_that_sleeps())


def on_a_group_of_the_program(folder: Path) -> None:
    """The default group is the program's, and takes host tensors."""
    dist.init_process_group("gloo")
    make("cpu", "ddp")
    tell(folder, "failed", wait_on_the_host_for_a_rank_that_fails())
    both = torch.ones(1)
    dist.all_reduce(both)  # the program's group is as it was
    tell(folder, "own", {"sum": both.item()})


def on_a_group_of_fitkit(folder: Path) -> None:
    """The default group is made with a time-out."""
    handler = make("cpu", fitkit.FSDP(timeout=TIMEOUT))
    tell(folder, "late", wait_for_a_rank_that_sleeps())
    if RANK == 0:
        tell(folder, "beside", outcome(lambda: handler.parallel.side_world.gather_all("here")))


def tell(folder: Path, name: str, found: dict[str, Any]) -> None:
    """Leave what was found for the test."""
    (folder / f"{name}{RANK}.json").write_text(json.dumps(found))


PLANS = {
    "device": on_a_device_group,
    "no-host": on_a_group_without_host_tensors,
    "program": on_a_group_of_the_program,
    "fitkit": on_a_group_of_fitkit,
}

if __name__ == "__main__":
    PLANS[sys.argv[2]](Path(sys.argv[1]))
