"""Two ranks for each case, forked from one process, of which one fails.

    python tests/scripts/failing_ranks.py OUT CASE...

Rank r of a case leaves ``OUT/CASE/rank<r>.json``: what the case returned or raised, and the seconds
from the failure on, which ``OUT/CASE/struck`` has the time of.
"""

from __future__ import annotations

import atexit
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import fitkit
from fitkit import Callback, ModelCheckpoint, NNHandler, on_rank
from fitkit.checkpointing.storage import sharded_checkpoint

X = torch.arange(192.0).reshape(64, 3) / 192
Y = X.sum(1, keepdim=True)
FAILING = 1
CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A case by the name of its function."""
    CASES[function.__name__] = function
    return function


def strike(out: Path, error: BaseException) -> None:
    """Note when it happens, and raise on one rank."""
    if os.environ["RANK"] == str(FAILING):
        (out / "struck").write_text(repr(time.time()))
        raise error


class Samples(torch.utils.data.Dataset):
    """Some of the samples cannot be read by one rank."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index in (36, 37):
            strike(self.out, OSError("bad sample"))
        return X[index], Y[index]


class Model(nn.Linear):
    """Fails when it is built or called."""

    def __init__(self, out: Path, where: str = "") -> None:
        super().__init__(3, 1)
        self.out, self.where = out, where
        if where == "init":
            strike(out, ValueError("bad model"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs."""
        if self.where == "forward":
            strike(self.out, ValueError("bad forward"))
        return super().forward(x)


class Hook(Callback):
    """Calls a function in one hook."""

    def __init__(self, event: str, action: Callable[[Hook], Any], batch: int = 3) -> None:
        self.event, self.action, self.batch = event, action, batch

    def _hear(self, event: str, batch: int) -> None:
        if event == self.event and batch == self.batch:
            self.action(self)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """In training."""
        self._hear("train", batch)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """In evaluation."""
        self._hear("test", batch)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """In prediction."""
        self._hear("predict", batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Between epochs."""
        self._hear("epoch", 3)


def make(out: Path, where: str = "", **options: Any) -> NNHandler:
    """A handler, ready to train."""
    torch.manual_seed(0)
    handler = NNHandler(Model(out, where), seed=0, device="cpu", **options)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    return handler


def fit(handler: NNHandler, *callbacks: Callback, epochs: int = 2) -> list[float]:
    """Train; the losses."""
    history = handler.fit(
        (X, Y), epochs=epochs, batch_size=4, progress_bar=False, callbacks=callbacks
    )
    return history.train_losses


def then_fit(handler: NNHandler, verb: Callable[[], Any]) -> Any:
    """After an error that the program catches, go on as if there had been none."""
    try:
        verb()
    finally:
        with_error = sys.exc_info()[1]
        if with_error is not None:
            try:
                fit(handler)
            except Exception as again:  # noqa: BLE001  the test looks at it
                with_error.again = f"{type(again).__name__}: {again}"  # type: ignore[attr-defined]


def end_process(out: Path, action: Callable[[], Any], rank: int = FAILING) -> Callable[..., Any]:
    """A rank whose process ends, without an exception."""

    def act(*_: Any) -> None:
        if os.environ["RANK"] == str(rank):
            (out / "struck").write_text(repr(time.time()))
            action()

    return act


def kill() -> None:
    """As the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """As before a preemption, on one machine of several."""
    os.kill(os.getpid(), signal.SIGTERM)


# ---- one rank fails -----------------------------------------------------------------------------


@case
def interrupt_in_hook(out: Path) -> Any:
    """As of a second Ctrl-C, or of the user's code."""
    return fit(make(out), Hook("train", lambda _: strike(out, KeyboardInterrupt())))


@case
def exit_in_hook(out: Path) -> Any:
    """``sys.exit`` by one rank."""
    return fit(make(out), Hook("train", lambda _: strike(out, SystemExit(3))))


@case
def evaluate_data(out: Path) -> Any:
    """A sample that cannot be read."""
    handler = make(out)
    then_fit(handler, lambda: handler.evaluate(Samples(out), batch_size=4))


@case
def evaluate_metric(out: Path) -> Any:
    """A metric fails."""
    handler = make(out)
    handler.add_metric("m", lambda o, t: strike(out, ZeroDivisionError("bad metric")) or o.mean())
    handler.evaluate((X, Y), batch_size=4)


@case
def evaluate_model(out: Path) -> Any:
    """The model fails."""
    make(out, "forward").evaluate((X, Y), batch_size=4)


@case
def evaluate_callback(out: Path) -> Any:
    """A hook fails."""
    hook = Hook("test", lambda _: strike(out, ValueError("bad hook")))
    make(out).evaluate((X, Y), batch_size=4, callbacks=[hook])


@case
def predict_data(out: Path) -> Any:
    """The same in predictions."""
    handler = make(out)
    then_fit(handler, lambda: handler.predict(Samples(out), batch_size=4))


@case
def predict_callback(out: Path) -> Any:
    """A hook of predictions fails."""
    hook = Hook("predict", lambda _: strike(out, ValueError("bad hook")))
    make(out).predict((X, Y), batch_size=4, callbacks=[hook])


@case
def predict_batches(out: Path) -> Any:
    """Fails while the others have all of their batches."""
    handler = make(out)
    for _ in handler.predict_batches(Samples(out), batch_size=4):
        pass
    handler.evaluate((X, Y))


@case
def constructor(out: Path) -> Any:
    """The model cannot be built."""
    NNHandler(Model, "cpu", out=out, where="init")


@case
def setter(out: Path) -> Any:
    """A setter fails, while the others go on to train."""
    handler = make(out)
    options = {"lr": 0.1}
    if handler.world.rank == FAILING:
        (out / "struck").write_text(repr(time.time()))
        options = {"lr": -1.0}
    handler.set_optimizer(torch.optim.SGD, **options)
    fit(handler)


@case
def load(out: Path) -> Any:
    """A file that only one rank does not see."""
    handler = make(out)
    if handler.world.is_main:
        handler.save(out / "whole.pth")
    handler.evaluate((X, Y))
    if handler.world.rank == FAILING:
        (out / "struck").write_text(repr(time.time()))
    path = "missing.pth" if handler.world.rank == FAILING else "whole.pth"
    NNHandler.load(out / path, "cpu", model_class=Model(out))


@case
def save(out: Path) -> Any:
    """In the middle of an epoch one rank has something that cannot be gathered."""

    def write(hook: Hook) -> None:
        meters = hook.handler.session.run.train.meters
        if hook.handler.world.rank == FAILING:
            meters.state_dict = lambda: strike(out, ValueError("bad meters"))
        hook.handler.save(out / "middle.pth")

    fit(make(out), Hook("train", write))


@case
def caught_in_hook(out: Path) -> Any:
    """A hook catches the error of an evaluation, and training would go on alone."""

    def evaluate(hook: Hook) -> None:
        try:
            hook.handler.evaluate(Samples(out), batch_size=4)
        except OSError:
            return

    fit(make(out), Hook("train", evaluate))


@case
def train_step(out: Path) -> Any:
    """The model fails in training."""
    fit(make(out), Hook("train", lambda _: strike(out, ValueError("bad step"))))


@case
def train_data(out: Path) -> Any:
    """A sample cannot be read."""
    make(out).fit(Samples(out), epochs=2, batch_size=4, progress_bar=False)


@case
def train_worker(out: Path) -> Any:
    """The same in a process of a DataLoader."""
    loader = DataLoader(Samples(out), batch_size=4, num_workers=1)
    make(out).fit(loader, epochs=2, progress_bar=False)


@case
def epoch_end(out: Path) -> Any:
    """Between two epochs."""
    fit(make(out), Hook("epoch", lambda _: strike(out, ValueError("bad epoch"))))


@case
def device(out: Path) -> Any:
    """One rank has no such device."""
    make(out)
    if os.environ["RANK"] == str(FAILING):
        (out / "struck").write_text(repr(time.time()))
        NNHandler(Model(out), "nonsense")
    NNHandler(Model(out), "cpu")


@case
def background_save(out: Path) -> Any:
    """The thread of one rank fails that writes behind training."""
    handler = make(out, strategy="fsdp")
    if handler.world.rank == FAILING:
        sharded_checkpoint.write_own_shards = lambda *_: strike(out, OSError("bad disk"))
    fit(handler, ModelCheckpoint(str(out / "last.pth"), save_freq=3, background=True))


@case
def second_failure(out: Path) -> Any:
    """After one that all ranks have raised and handled."""
    handler = make(out)
    try:
        fit(handler, raise_once("train", ValueError("first")))
    except ValueError:
        fit(handler, Hook("train", lambda _: strike(out, KeyError("second"))))


@case
def early_end(out: Path) -> Any:
    """The script of one rank is over, and the other calls ``fit`` once more."""
    handler = make(out)
    fit(handler)
    if handler.world.rank == FAILING:
        (out / "struck").write_text(repr(time.time()))
        return
    fit(handler)


@case
def killed_in_predict(out: Path) -> Any:
    """SIGKILL in predictions."""
    hook = Hook("predict", end_process(out, kill))
    make(out).predict((X, Y), batch_size=4, callbacks=[hook])


@case
def killed_before_load(out: Path) -> Any:
    """SIGKILL while the others load."""
    handler = make(out)
    handler.save(out / "whole.pth")
    end_process(out, kill)()
    NNHandler.load(out / "whole.pth", "cpu", model_class=Model(out))


def copy_and_kill(out: Path, rank: int, copy: Callable[[torch.Tensor], Any]) -> None:
    """SIGKILL of ``rank`` while a large tensor is under way."""
    tensor = torch.ones(50_000_000)

    def end() -> None:
        time.sleep(0.1)
        end_process(out, kill, rank=rank)()

    threading.Thread(target=end, daemon=True).start()
    for _ in range(20):
        copy(tensor)


def killed_in_copy(out: Path, rank: int) -> None:
    """As when the ranks get the weights of rank 0."""
    world = make(out).world
    with world.call("copy"):
        copy_and_kill(out, rank, lambda tensor: world.copy_from_main([tensor]))


@case
def killed_as_receiver(out: Path) -> Any:
    """Rank 0 sends."""
    killed_in_copy(out, 1)


@case
def killed_as_sender(out: Path) -> Any:
    """Rank 1 receives, and the store ends with rank 0."""
    killed_in_copy(out, 0)


@case
def hard_exit(out: Path) -> Any:
    """``os._exit``."""
    fit(make(out), Hook("train", end_process(out, lambda: os._exit(7))))


@case
def killed(out: Path) -> Any:
    """SIGKILL of rank 1."""
    fit(make(out), Hook("train", end_process(out, kill)))


@case
def killed_main(out: Path) -> Any:
    """SIGKILL of rank 0, which serves the store."""
    fit(make(out), Hook("train", end_process(out, kill, rank=0)))


@case
def terminated(out: Path) -> Any:
    """SIGTERM to one rank: both end after the same batch."""
    fit(make(out), Hook("train", end_process(out, terminate)), epochs=2000)


# ---- all ranks fail in the same way -------------------------------------------------------------


@case
def all_raise(out: Path) -> Any:
    """A wrong argument, several times; then training works."""
    handler, kinds = make(out), []
    for wrong in (
        handler.evaluate,
        lambda: handler.set_optimizer(torch.optim.SGD, lr=-1.0),
        lambda: handler.set_optimizer(torch.optim.SGD, lr=-1.0),
        lambda: handler.fit((X, Y), epochs=-1),
        lambda: NNHandler.load(out / "missing.pth"),
    ):
        try:
            wrong()
        except Exception as error:  # noqa: BLE001  the test looks at it
            kinds.append(type(error).__name__)
    return [kinds, fit(handler), handler.evaluate((X, Y))]


class Unreadable(Samples):
    """Each rank has samples in the third batch that cannot be read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if 32 <= index < 48:
            raise OSError("bad sample")
        return X[index], Y[index]


def raise_once(event: str, error: BaseException) -> Hook:
    """A hook that raises on all ranks in its first call only."""
    left = [error]

    def act(_: Hook) -> None:
        if left:
            raise left.pop()

    return Hook(event, act)


@case
def all_raise_in_fit(out: Path) -> Any:
    """Wherever in a run all ranks raise, the same handler can train again."""
    handler, found = make(out), []
    hooks = [raise_once(event, ValueError(event)) for event in ("train", "epoch")]
    once = [ValueError("forward")]
    handler.module.register_forward_hook(lambda *_: _raise(once.pop()) if once else None)
    bad = Unreadable(out)
    runs = [
        lambda: fit(handler),
        *(lambda hook=hook: fit(handler, hook) for hook in hooks),
        lambda: handler.fit(bad, epochs=1, batch_size=8, shuffle=False, progress_bar=False),
    ]
    for one in runs:
        try:
            one()
            found.append("nothing")
        except Exception as error:  # noqa: BLE001  the test looks at it
            found.append(type(error).__name__)
    return [found, fit(handler), handler.evaluate((X, Y))]


def _raise(error: BaseException) -> None:
    raise error


@case
def all_interrupt(out: Path) -> Any:
    """The user's code raises KeyboardInterrupt: ``fit`` returns, as after Ctrl-C."""
    handler, found = make(out), []
    for event in ("train", "train", "epoch"):
        fit(handler, raise_once(event, KeyboardInterrupt()))
        found.append(handler.history.interrupted)
    return [found, len(fit(handler))]


@case
def all_interrupt_in_turn(out: Path) -> Any:
    """One so late that the others no longer wait for it: each rank has what it raised."""

    def interrupt(_: Hook) -> None:
        time.sleep(2.0 * int(os.environ["RANK"]))
        raise KeyboardInterrupt

    fit(make(out), Hook("train", interrupt))


@case
def all_raise_in_backward(out: Path) -> Any:
    """In the middle of a backward pass, and the program keeps the error as a notebook does."""
    handler, kept = make(out), []
    once = [ValueError("backward")]
    handler.module.weight.register_hook(lambda _: _raise(once.pop()) if once else None)
    try:
        fit(handler)
    except ValueError as error:
        kept.append(error)
    return [len(kept), fit(handler)]


@case
def slow_to_hear(out: Path) -> Any:
    """A hook of one rank takes long after an error of all."""

    class Slow(Callback):
        def on_exception(self, error: BaseException) -> None:
            time.sleep(2.5 * int(os.environ["RANK"]))

    handler = make(out)
    try:
        fit(handler, raise_once("train", ValueError("train")), Slow())
    except ValueError:
        return fit(handler)


@case
def copies(out: Path) -> Any:
    """A deep copy of a handler trains like itself; no rank can be pickled."""
    handler = make(out)
    fit(handler)
    other = copy.deepcopy(handler)
    try:
        pickle.dumps(handler)
        told = "nothing"
    except ValueError as error:
        told = str(error)
    return [fit(other), fit(handler), other.world is handler.world, told]


# ---- one rank by itself -------------------------------------------------------------------------


def on_main(function: Callable[[], Any], *, barrier: bool) -> Any:
    """Run it on rank 0."""
    return on_rank(0, barrier=barrier)(function)()


@case
def alone_evaluates(out: Path) -> Any:
    """Evaluation and prediction on rank 0, between and within epochs."""
    handler, found = make(out), []

    def look(hook: Hook) -> None:
        def act() -> list[Any]:
            outputs = handler.predict((X, Y), batch_size=8)
            batches = list(handler.predict_batches((X, Y), batch_size=8))
            return [
                handler.evaluate((X, Y), batch_size=8)["loss"],
                (handler.module(X).detach() - Y).square().mean().item(),
                len(outputs),
                sum(map(len, batches)),
                handler.world.size,
            ]

        for barrier in (True, False):
            found.append(on_main(act, barrier=barrier))

    losses = fit(handler, Hook("train", look), Hook("epoch", look))
    return [found, losses == fit(make(out)), handler.evaluate((X, Y))]


@case
def on_several_ranks(out: Path) -> Any:
    """All ranks that run the function are waited for, and an error on one is raised on all."""
    handler = make(out)
    rank = handler.world.rank
    found = [on_rank([0, 1], barrier=True)(lambda: rank)(), on_rank(range(1))(lambda: rank)()]
    try:
        on_rank([0, 1], barrier=True)(lambda: 1 // (1 - rank))()
    except Exception as error:  # noqa: BLE001  the test looks at it
        found.append(f"{type(error).__name__}: {error}")
    return [*found, handler.world.gather_all(rank)]


@case
def alone_saves(out: Path) -> Any:
    """Rank 0 saves between epochs, and builds a handler of its own."""

    def act(hook: Hook) -> str:
        hook.handler.save(out / "alone.pth")
        other = NNHandler.load(out / "alone.pth", "cpu", model_class=Model(out))
        other.set_loss_fn(nn.MSELoss())
        return f"{other.world.size} {len(fit(other, epochs=1))}"

    found = []
    hook = Hook("epoch", lambda hook: found.append(on_main(lambda: act(hook), barrier=True)))
    fit(make(out), hook)
    return found


@case
def alone_saves_in_epoch(out: Path) -> Any:
    """What cannot work is refused at once."""
    save = lambda hook: on_main(lambda: hook.handler.save(out / "a.pth"), barrier=True)  # noqa: E731
    (out / "struck").write_text(repr(time.time()))
    fit(make(out), Hook("train", save))


@case
def alone_fits(out: Path) -> Any:
    """So are verbs that train the model of all."""
    handler = make(out)
    (out / "struck").write_text(repr(time.time()))
    on_main(lambda: fit(handler), barrier=True)


@case
def alone_and_sharded(out: Path) -> Any:
    """Nor can one rank evaluate a sharded model."""
    handler = make(out, strategy="fsdp")
    (out / "struck").write_text(repr(time.time()))
    on_main(lambda: handler.evaluate((X, Y)), barrier=True)


# ---- ranks that wait for each other, or for one that does not come ------------------------------


def on_rank_0(out: Path, action: Callable[[NNHandler], Any]) -> Callable[[Hook], None]:
    """What many programs have: ``if handler.world.is_main: ...``."""

    def act(hook: Hook) -> None:
        if hook.handler.world.is_main:
            (out / "struck").write_text(repr(time.time()))
            action(hook.handler)

    return act


@case
def main_saves_in_epoch(out: Path) -> Any:
    """The other rank goes on to its next batch."""
    fit(make(out), Hook("train", on_rank_0(out, lambda handler: handler.save(out / "a.pth"))))


@case
def main_evaluates(out: Path) -> Any:
    """Between epochs, while the other rank goes on."""
    fit(make(out), Hook("epoch", on_rank_0(out, lambda handler: handler.evaluate((X, Y)))))


@case
def main_fits(out: Path) -> Any:
    """A second handler that only one rank trains."""
    handler = make(out)
    if handler.world.is_main:
        (out / "struck").write_text(repr(time.time()))
        fit(handler)
    handler.predict((X, Y))


class Endless(Samples):
    """One rank never gets its sample."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        while index in (36, 37) and os.environ["RANK"] == str(FAILING):
            if not (self.out / "struck").exists():
                (self.out / "struck").write_text(repr(time.time()))
            time.sleep(0.01)
        return X[index], Y[index]


@case
def stuck_in_data(out: Path) -> Any:
    """The others wait for as long as the strategy's timeout says."""
    handler = make(out, strategy=fitkit.DDP(timeout=4))
    handler.fit(Endless(out), epochs=1, batch_size=4, shuffle=False, progress_bar=False)


@case
def slow_rank(out: Path) -> Any:
    """One rank is busy for longer than the watch needs to look: no failure."""
    handler = make(out)
    hook = Hook("train", lambda _: time.sleep(8) if os.environ["RANK"] == "0" else None)
    losses = fit(handler, hook, epochs=1)
    return [on_rank(0, barrier=True)(lambda: time.sleep(8))(), len(losses)]


def stop_one(
    out: Path, number: int, times: int = 1, *, stopped: int = FAILING
) -> Callable[..., None]:
    """One rank stops for good; the other one then receives a signal."""

    def act(*_: Any) -> None:
        if os.environ["RANK"] == str(stopped):
            os.kill(os.getpid(), signal.SIGSTOP)
        elif not (out / "struck").exists():
            time.sleep(0.5)
            (out / "struck").write_text(repr(time.time() + 1))
            kill = f"sleep 0.2; kill -{number} {os.getpid()};"
            subprocess.Popen(["sh", "-c", f"sleep 0.8; {kill * times}"])

    return act


@case
def terminated_while_waiting(out: Path) -> Any:
    """SIGTERM while the main thread is in a collective."""
    fit(make(out), Hook("train", stop_one(out, signal.SIGTERM)))


@case
def interrupted_twice_while_waiting(out: Path) -> Any:
    """A second Ctrl-C while the main thread is in a collective."""
    fit(make(out), Hook("train", stop_one(out, signal.SIGINT, 2)))


@case
def terminated_in_step_while_waiting(out: Path) -> Any:
    """SIGTERM while it is in a collective of torch, as that of the gradients."""
    handler = make(out)
    stop = stop_one(out, signal.SIGTERM)
    handler.module.register_forward_hook(lambda *_: stop() if handler.state.batch == 3 else None)
    fit(handler)


@case
def terminated_while_waiting_for_main(out: Path) -> Any:
    """SIGTERM while rank 0 is stopped, which serves the store."""
    fit(make(out), Hook("train", stop_one(out, signal.SIGTERM, stopped=0)))


@case
def timeout_while_waiting_for_main(out: Path) -> Any:
    """The same without a signal: it lasts as long as the strategy's timeout says."""
    handler = make(out, strategy=fitkit.DDP(timeout=4))
    fit(handler, Hook("train", stop_one(out, 0, stopped=0)))


# ---- processes ----------------------------------------------------------------------------------


def run(out: Path, name: str, rank: int) -> None:
    """One rank of one case."""
    found: dict[str, Any] = {}
    try:
        found["returned"] = CASES[name](out)
    except BaseException as error:  # noqa: BLE001  the test looks at it
        found |= {"type": type(error).__name__, "text": str(error), "at": time.time()}
        found["again"] = getattr(error, "again", None)
    path = out / f"rank{rank}.json"
    path.write_text(json.dumps(found))


def start(out: Path, name: str, port: int, size: int = 2) -> list[int]:
    """Fork the ranks of a case; their process ids."""
    out.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_ERROR_FILE": str(out / f"error{rank}.json"),
            }
            code = 1
            try:
                run(out, name, rank)
                code = 0
            finally:
                atexit._run_exitfuncs()
                os._exit(code)
        processes.append(pid)
    return processes


def main(out: Path, names: list[str]) -> None:
    """Run the cases, three at a time: they wait more than they compute."""
    # scripts that run beside this one have process ids, and so ports, nearby
    left = [(name, 20000 + (64 * os.getpid() + i) % 12000) for i, name in enumerate(names)]
    while left:
        pairs = {out / name: start(out / name, name, port) for name, port in left[:3]}
        wait_for(pairs)
        left = left[3:]


def wait_for(pairs: dict[Path, list[int]]) -> None:
    """Note when each rank ends; one that is left for long is killed."""
    ended: dict[Path, dict[int, dict[str, Any]]] = {folder: {} for folder in pairs}
    while any(len(ended[folder]) < len(pair) for folder, pair in pairs.items()):
        for folder, pair in pairs.items():
            for rank, pid in enumerate(pair):
                if rank in ended[folder]:
                    continue
                done, status = os.waitpid(pid, os.WNOHANG)
                if done == pid:
                    code = os.waitstatus_to_exitcode(status)
                    ended[folder][rank] = {"at": time.time(), "code": code}
                elif ended[folder] and time.time() - _first(ended[folder]) > 10:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for folder, ranks in ended.items():
        (folder / "ended.json").write_text(json.dumps(ranks))


def _first(ranks: dict[int, dict[str, Any]]) -> float:
    return min(float(one["at"]) for one in ranks.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
