"""What a failure of one rank does to the other, with fitkit and with torch alone, side by side.

    python tests/benchmarks/failures.py [CASE...]

Prints the table of docs/distributed.md. Two ranks for each case are forked from one process that
has imported everything, so that the seconds, from the failure until every rank is over, have no
start in them. What torch alone does is a loop with ``DistributedDataParallel`` and gloo; both
columns run without a launcher that would end the other ranks, as ``torchrun`` does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import failing_ranks as kit
from failing_ranks import FAILING, Endless, Samples, X, Y, end_process, kill, strike, terminate

LIMIT = 40.0
Action = Callable[[int, nn.Module], Any]


class Whole(Samples):
    """All samples can be read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return X[index], Y[index]


def train_with_torch(
    out: Path, after: Action = lambda *_: None, data: Dataset[Any] | None = None, workers: int = 0
) -> None:
    """The usual loop; ``after`` is called at the end of each batch with its number."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, model = dist.get_rank(), DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = data or Whole(out)
    # rank 1 has the samples of which some cannot be read
    part = torch.utils.data.Subset(data, range(32 * rank, 32 * rank + 32))
    for _ in range(2):
        for number, (x, y) in enumerate(DataLoader(part, batch_size=4, num_workers=workers)):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            after(number, model)


def at_batch_3(action: Action) -> Action:
    """Once, in the middle of an epoch."""
    return lambda number, model: action(number, model) if number == 3 else None


# ---- torch alone --------------------------------------------------------------------------------


def torch_raise(error: BaseException) -> Callable[[Path], Any]:
    """An exception after a batch."""
    return lambda out: train_with_torch(out, at_batch_3(lambda *_: strike(out, error)))


def torch_end(action: Callable[[], Any], rank: int = FAILING) -> Callable[[Path], Any]:
    """The end of a process."""
    return lambda out: train_with_torch(out, at_batch_3(end_process(out, action, rank)))


def torch_kill_in_copy(rank: int) -> Callable[[Path], Any]:
    """The end of a process while a large tensor is under way."""

    def copy(out: Path) -> None:
        dist.init_process_group("gloo")
        kit.copy_and_kill(out, rank, lambda tensor: dist.broadcast(tensor, 0))

    return copy


def torch_raise_before(out: Path) -> None:
    """An exception before training."""
    dist.init_process_group("gloo")
    strike(out, ValueError("bad model"))
    train_with_torch(out)


def torch_caught(out: Path) -> None:
    """One rank leaves its loop and goes on with another."""

    def evaluate(*_: Any) -> None:
        try:
            strike(out, OSError("bad sample"))
        except OSError:
            return
        dist.all_reduce(torch.zeros(1))

    train_with_torch(out, at_batch_3(evaluate))


def torch_stuck(out: Path) -> None:
    """The others wait for as long as the group's timeout says."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=4))
    train_with_torch(out, data=Endless(out))


def torch_alone(out: Path) -> None:
    """A collective that rank 0 calls by itself."""
    train_with_torch(out, at_batch_3(end_process(out, dist.barrier, rank=0)))


def torch_stopped(number: int, times: int = 1, stopped: int = FAILING) -> Callable[[Path], Any]:
    """One rank stops; the other receives a signal while it waits."""
    return lambda out: train_with_torch(
        out, at_batch_3(kit.stop_one(out, number, times, stopped=stopped))
    )


def torch_timeout(out: Path) -> None:
    """Rank 0 stops; the other waits for as long as the group's timeout says."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=4))
    torch_stopped(0, stopped=0)(out)


# the case, what happens, what torch alone does then, and the test
ROWS: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("train_step", "an error in a training step or hook", torch_raise(ValueError("bad step"))),
    ("train_data", "a sample cannot be read", lambda out: train_with_torch(out, data=Samples(out))),
    (
        "train_worker",
        "the same in a DataLoader worker",
        lambda out: train_with_torch(out, data=Samples(out), workers=1),
    ),
    ("interrupt_in_hook", "KeyboardInterrupt on one rank", torch_raise(KeyboardInterrupt())),
    ("exit_in_hook", "`sys.exit(3)` on one rank", torch_raise(SystemExit(3))),
    ("hard_exit", "`os._exit(7)` on one rank", torch_end(lambda: os._exit(7))),
    ("killed", "SIGKILL of rank 1", torch_end(kill)),
    ("killed_main", "SIGKILL of rank 0, which serves the store", torch_end(kill, 0)),
    (
        "killed_as_receiver",
        "SIGKILL of rank 1 while it receives large weights from rank 0",
        torch_kill_in_copy(1),
    ),
    ("killed_as_sender", "the same, of rank 0", torch_kill_in_copy(0)),
    ("constructor", "the model cannot be built on one rank", torch_raise_before),
    ("setter", "a setter raises on one rank, the other trains", torch_raise_before),
    ("evaluate_data", "`evaluate`: a sample cannot be read", torch_raise(OSError("bad sample"))),
    ("predict_data", "`predict`: a sample cannot be read", torch_raise(OSError("bad sample"))),
    ("caught_in_hook", "one rank catches its error and trains on", torch_caught),
    ("main_saves_in_epoch", "a call that needs all ranks on rank 0 only: `save`", torch_alone),
    ("main_evaluates", "the same: `evaluate`", torch_alone),
    ("stuck_in_data", "a rank stuck in its data, timeout of 4 s", torch_stuck),
    ("terminated", "SIGTERM to one rank", torch_end(terminate)),
    (
        "terminated_while_waiting",
        "SIGTERM to a rank that waits for a stopped one",
        torch_stopped(signal.SIGTERM),
    ),
    (
        "terminated_in_step_while_waiting",
        "the same, in the backward pass",
        torch_stopped(signal.SIGTERM),
    ),
    ("interrupted_twice_while_waiting", "the same, Ctrl-C twice", torch_stopped(signal.SIGINT, 2)),
    (
        "terminated_while_waiting_for_main",
        "SIGTERM to a rank that waits for a stopped rank 0, which serves the store",
        torch_stopped(signal.SIGTERM, stopped=0),
    ),
    ("timeout_while_waiting_for_main", "the same without a signal, timeout of 4 s", torch_timeout),
]


def measure(out: Path, name: str, port: int) -> str:
    """Run two ranks; what each did, and the seconds until the last was over."""
    pids = dict(enumerate(kit.start(out, name, port)))
    ends: dict[int, tuple[float, int]] = {}
    began = time.time()
    while len(ends) < len(pids):
        for rank, pid in pids.items():
            if rank not in ends:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done == pid:
                    ends[rank] = time.time(), status
        struck = _struck(out)
        if time.time() - (struck or began + 20) > LIMIT:
            break
        if "waiting" in name and ends:  # the other rank is stopped for good
            break
        time.sleep(0.01)
    for rank in pids.keys() - ends.keys():
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    told = [_told(out, rank, ends.get(rank)) for rank in pids]
    if any(told_of == "hangs" for told_of in told):
        return f"{'; '.join(told)} | > {LIMIT:.0f}"
    seconds = max(end[0] for end in ends.values()) - (_struck(out) or began)
    return f"{'; '.join(told)} | {seconds:.1f}"


def _struck(out: Path) -> float | None:
    text = (out / "struck").read_text() if (out / "struck").exists() else ""
    return float(text) if text else None


def _told(out: Path, rank: int, end: tuple[float, int] | None) -> str:
    path = out / f"rank{rank}.json"
    if end is None:
        is_stopped = "waiting" in out.name and rank == (0 if "main" in out.name else FAILING)
        return "stopped" if is_stopped else "hangs"
    if path.exists():
        return str(json.loads(path.read_text()).get("type", "ends"))
    number, code = end[1] & 127, end[1] >> 8
    return signal.Signals(number).name if number else f"exit {code}"


def main(names: list[str]) -> None:
    """Print a row for each case."""
    print("| what happens | fitkit: rank 0; rank 1 | s | torch alone: rank 0; rank 1 | s |")
    print("|---|---|---|---|---|")
    folder = tempfile.mkdtemp()  # a TemporaryDirectory would be removed by a forked rank
    for index, (name, what, alone) in enumerate(ROWS):
        if names and name not in names:
            continue
        kit.CASES[f"torch_{name}"] = alone
        port = 20000 + (os.getpid() + 2 * index) % 12000
        with_fitkit = measure(Path(folder, name), name, port)
        with_torch = measure(Path(folder, f"torch_{name}"), f"torch_{name}", port + 1)
        print(f"| {what} | {with_fitkit} | {with_torch} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
