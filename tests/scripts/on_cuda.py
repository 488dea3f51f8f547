"""The one script for a real device: what only a device shows, within eight minutes.

    python tests/scripts/on_cuda.py                       # the current CUDA device
    python tests/scripts/on_cuda.py --device cuda:1       # another one; or mps, xpu
    python tests/scripts/on_cuda.py --device cpu          # what a CPU can check
    python tests/scripts/on_cuda.py --device sim          # the simulated accelerator of tests/
    python tests/scripts/on_cuda.py --device sim-without-float64
    python tests/scripts/on_cuda.py --only "optimizer"    # checks with this text in their name
    python tests/scripts/on_cuda.py --list                # names, and seconds expected on a GPU
    python tests/scripts/on_cuda.py --table               # instead: what a step costs, some minutes

It needs torch, numpy, tqdm and click, and no installation of fitkit. The first line names the
device and the versions. Then there is one line per check: PASS, FAIL or SKIP, the check, its
seconds, and a figure or a reason. The last line counts them. The exit status is the number of
failures, at most 100; it is 1 if nothing could be checked.

Checks are independent of each other. The most important ones come first: exact resuming, devices,
random streams, then waiting and memory; what a step costs comes last. A check that is not expected
to end within ``--budget`` seconds is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import logging
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# cuBLAS reads it once, when it is initialized; without it a matrix product may differ between runs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import fitkit  # noqa: E402
from fitkit.checkpointing.storage import single_or_sharded  # noqa: E402
from fitkit.core import device_capabilities, state_placement  # noqa: E402
from fitkit.core.errors import FitkitError  # noqa: E402
from fitkit.core.tree import map_tensors  # noqa: E402
from fitkit.runtime.device import resolve_device, to_device  # noqa: E402
from fitkit.runtime.host_staging import HostStaging  # noqa: E402
from fitkit.runtime.out_of_memory import free_pinned_memory, is_out_of_memory  # noqa: E402
from fitkit.testing import assert_resumes_exactly, deterministic, differences  # noqa: E402

SIM, SIM_WITHOUT_FLOAT64 = "sim", "sim-without-float64"
MAX_STATUS = 100
MAX_CHARACTERS = 300  # of what a failure says
GRACE_SECONDS = 25.0  # that the last check may take beyond the budget
MEBIBYTE = 1 << 20


class Skip(Exception):  # noqa: N818
    """This device cannot carry the check out; the message says why."""


class OutOfTimeError(BaseException):
    """A check takes too long; no ``except Exception`` on the way holds it up."""


class CheckError(AssertionError):
    """What a check expected is not so; the message is complete, with the place in the source."""


# ---- the device ---------------------------------------------------------------------------------


class Target:
    """The device under test, and what differs between kinds of devices.

    Attributes:
        device: with its index.
        simulation: the simulated accelerator's record; ``None`` on any other device.
        is_small: whether data and models are small, because the device is slow.
    """

    def __init__(self, device: torch.device, simulation=None) -> None:
        self.device = device
        self.simulation = simulation
        self.is_small = device.type in ("cpu", SIM)

    @property
    def kind(self) -> str:
        return self.device.type

    @property
    def name(self) -> str:
        return str(self.device)

    @property
    def module(self):
        """``torch.cuda`` and the like."""
        return torch.get_device_module(self.device)

    @property
    def count(self) -> int:
        return 1 if self.kind in ("cpu", "mps") else self.module.device_count()

    @property
    def has_float64(self) -> bool:
        return device_capabilities.has_float64(self.device)

    def other(self) -> str:
        """Another device of the kind."""
        if self.count < 2:
            raise Skip(f"needs 2 devices, there is {self.count}")
        return f"{self.kind}:{1 if self.device.index == 0 else 0}"

    def require_accelerator(self) -> None:
        if self.kind == "cpu":
            raise Skip("needs an accelerator")

    def require_cuda(self) -> None:
        if self.kind != "cuda":
            raise Skip("needs CUDA")

    def synchronize(self) -> None:
        if self.kind == "mps":
            self.module.synchronize()
        elif self.kind != "cpu":
            self.module.synchronize(self.device)

    def random_state(self) -> Tensor:
        """The state of the device's random stream; of the host's where it has none."""
        if self.kind == "cpu":
            return torch.get_rng_state()
        if self.kind == "mps":
            return self.module.get_rng_state()
        return self.module.get_rng_state(self.device)

    # ---- memory ---------------------------------------------------------------------------------

    def allocated(self) -> int:
        """Bytes in tensors of the device."""
        if self.simulation is not None:
            return self.simulation.allocated
        if self.kind == "mps":
            return self.module.current_allocated_memory()
        if not hasattr(self.module, "memory_allocated"):
            raise Skip(f"torch does not count the memory of {self.kind}")
        return self.module.memory_allocated(self.device)

    def settled(self) -> int:
        """Bytes in tensors that something still refers to."""
        gc.collect()
        self.synchronize()
        return self.allocated()

    def peak_of(self, function: Callable[[], object]) -> int:
        """The most bytes that were in use at once during a call, besides those before it."""
        if self.simulation is not None:
            before = self.settled()
            self.simulation.reset_peak()
            function()
            return self.simulation.peak - before
        if not hasattr(self.module, "max_memory_allocated"):
            raise Skip(f"torch does not record the peak of memory of {self.kind}")
        before = self.settled()
        self.module.empty_cache()
        self.module.reset_peak_memory_stats(self.device)
        function()
        return self.module.max_memory_allocated(self.device) - before

    def pinned(self) -> int:
        """Bytes of pinned host memory that torch has or keeps."""
        if self.simulation is not None:
            return self.simulation.pinned_kept
        if self.kind != "cuda" or not hasattr(torch.cuda, "host_memory_stats"):
            raise Skip(f"torch does not count pinned memory on {self.kind}")
        stats = torch.cuda.host_memory_stats()
        if "allocated_bytes.current" not in stats:
            raise Skip("this torch counts pinned memory in another way")
        return stats["allocated_bytes.current"]

    def num_pinned(self) -> int:
        """Pinned storages that something refers to, where they are counted; else 0."""
        gc.collect()
        return 0 if self.simulation is None else len(self.simulation.pinned)

    # ---- around each check ----------------------------------------------------------------------

    def tidy(self) -> None:
        """As before the first check, whatever the last one left."""
        if self.kind == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        if torch.are_deterministic_algorithms_enabled():  # to set it imports torch's compiler
            torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.enabled = True
        gc.collect()
        if hasattr(self.module, "set_device"):  # a handler makes its device the current one
            self.module.set_device(self.device)
        if hasattr(self.module, "empty_cache"):
            self.module.empty_cache()
        if self.simulation is not None:
            self.simulation.finish()
            self.simulation.waits.clear()
            self.simulation.copies.clear()
            self.simulation.overwritten.clear()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    def require_safe_copies(self) -> None:
        """Fail if a copy that nobody waited for could have gone wrong on a real device."""
        if self.simulation is None:
            return
        self.simulation.finish()
        for line in self.simulation.overwritten:
            place = place_in_simulation(line)
            raise CheckError(f"memory changed while it was copied to the device ({place})")
        for way, is_pinned, line in self.simulation.copies:
            if way != "to the device" or not is_pinned:
                memory = "pinned" if is_pinned else "pageable"
                place = place_in_simulation(line)
                raise CheckError(f"asynchronous copy {way}, {memory} memory ({place})")

    def answers(self) -> bool:
        """Whether the device still computes; after an illegal access CUDA does not."""
        try:
            return torch.ones(2, device=self.device).sum().item() == 2.0
        except Exception:  # noqa: BLE001
            return False

    def facts(self) -> str:
        """The first line of the output."""
        name = {"cpu": platform.processor() or platform.machine(), SIM: "simulated accelerator"}
        about = [f"{name.get(self.kind, self.kind)} ({self.name}) x {self.count}"]
        if self.kind == "cuda":
            found = torch.cuda.get_device_properties(self.device)
            about = [
                f"{found.name} ({self.name}) x {self.count}",
                f"{found.total_memory / 2**30:.0f} GiB",
                f"capability {found.major}.{found.minor}",
                f"{found.multi_processor_count} multiprocessors",
            ]
        elif self.kind == "xpu":
            about[0] = f"{torch.xpu.get_device_name(self.device)} ({self.name}) x {self.count}"
        about += ["float64" if self.has_float64 else "no float64", f"torch {torch.__version__}"]
        if self.kind == "cuda":
            about.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        about += [f"Python {platform.python_version()}", f"fitkit {fitkit.__version__}"]
        return ", ".join(about)


TARGET = Target(torch.device("cpu"))


# ---- the checks, and what they share ------------------------------------------------------------

Check = Callable[[Path], object]
CHECKS: list[tuple[Check, float]] = []


def check(seconds: float) -> Callable[[Check], Check]:
    """Makes a function with a sentence for a name a check.

    Args:
        seconds: how long it is expected to take on a GPU; an estimate.
    """

    def add(function: Check) -> Check:
        CHECKS.append((function, seconds))
        return function

    return add


def sentence_of(function: Check) -> str:
    return function.__name__.replace("_", " ")


class Cases:
    """The cases of one check: one that fails does not hide the others."""

    def __init__(self) -> None:
        self.tried = 0
        self.skipped: list[str] = []
        self.failed: list[str] = []

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        self.tried += 1
        try:
            yield
        except Skip as reason:
            self.tried -= 1
            self.skipped.append(f"{name} ({reason})")
        except Exception as error:  # noqa: BLE001  all of them are reported at the end
            self.failed.append(f"{name}: {described(error, 150)}")
        finally:
            if TARGET.kind == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    def summary(self, what: str) -> str:
        if self.failed:
            count = f"{len(self.failed)} of {self.tried} cases fail"
            raise CheckError(f"{count}: {'; '.join(self.failed)}")
        if not self.tried:
            raise Skip("; ".join(self.skipped))
        left_out = f"; not tried: {', '.join(self.skipped)}" if self.skipped else ""
        return f"{self.tried} {what}{left_out}"


def described(error: BaseException, most: int = MAX_CHARACTERS) -> str:
    """One line: the first line of an error, and the line of fitkit that it came from."""
    first = " ".join((str(error).strip().splitlines() or ["no message"])[0].split())
    if isinstance(error, CheckError):
        return first[:most]
    return f"{type(error).__name__}: {first}"[:most] + f" ({place_of(error)})"


def place_of(error: BaseException) -> str:
    """The line of fitkit that an error came from; of this script if it came from none."""
    while error.__cause__ is not None:
        error = error.__cause__
    own, here = [], []
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).is_relative_to(ROOT / "fitkit"):
            own.append(frame)
        elif frame.filename == __file__ and not frame.name.startswith("require"):
            here.append(frame)
    for frame in (own or here)[-1:]:
        return f"{Path(frame.filename).relative_to(ROOT).as_posix()}:{frame.lineno}"
    return "no line of fitkit"


def place_in_simulation(line: str) -> str:
    """The same for a line in the record of the simulated accelerator."""
    is_ours = (ROOT / "fitkit" / line.rpartition(":")[0]).exists()
    return f"{'fitkit' if is_ours else 'tests'}/{line}"


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


WIDTH, CLASSES = 32, 10


def batch_size() -> int:
    return 16 if TARGET.is_small else 32


def data(samples: int, *, regression: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, WIDTH, generator=generator)
    if regression:
        return inputs, torch.randn(samples, CLASSES, generator=generator)
    return inputs, torch.randint(CLASSES, (samples,), generator=generator)


def settings(*, regression: bool = False, **more) -> dict:
    """Arguments of ``fit``: two epochs of 32 training and 4 validation batches, the last short.

    Where everything is small they are 4 and 3.
    """
    samples, held_out = (60, 40) if TARGET.is_small else (1000, 100)
    return {
        "train_data": data(samples, regression=regression),
        "validation_data": data(held_out, regression=regression),
        "epochs": 2,
        "batch_size": batch_size(),
        "progress_bar": False,
        **more,
    }


def cuts() -> list[tuple[str, int]]:
    """Where runs with ``settings`` are saved: the phase, and the batches done in it."""
    train = (1, 3) if TARGET.is_small else (3, 28)
    return [*(("train", batch) for batch in train), ("test", 2)]


class MeanOutput(fitkit.Metric):
    """As in the docstring of ``fitkit.Metric``."""

    def update(self, outputs, targets):
        return outputs.sum(), outputs.numel()

    def compute(self, sums):
        return sums[0] / sums[1]


class MeanOutputStacked(MeanOutput):
    """The older spelling, which makes a tensor without naming a device."""

    def update(self, outputs, targets):
        return torch.stack([outputs.sum(), torch.tensor(float(outputs.numel()))])


def share_right(outputs, targets):
    """A metric that is a plain function."""
    return (outputs.argmax(1) == targets).float().mean()


CLASSIFICATION = {
    "accuracy": fitkit.Accuracy,
    "topk": lambda: fitkit.TopKAccuracy(3),
    "custom": MeanOutput,
    "stacked": MeanOutputStacked,
    "function": lambda: share_right,
}
REGRESSION = {"mse": fitkit.MeanSquaredError, "mae": fitkit.MeanAbsoluteError, "r2": fitkit.R2Score}


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 64), nn.BatchNorm1d(64), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, CLASSES)
    )


def make(
    metrics: tuple[str, ...] = (),
    *,
    model: Callable[[], nn.Module] = small_model,
    device: str | None = None,
    regression: bool = False,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    **options,
) -> fitkit.NNHandler:
    """A handler of the same initial weights each time."""
    torch.manual_seed(0)
    kind = "regression" if regression else "classification"
    where = device or TARGET.name
    handler = fitkit.NNHandler(model(), where, seed=0, model_type=kind)
    handler.set_optimizer(optimizer, **{"lr": 1e-3, **options})
    handler.set_loss_fn(nn.MSELoss() if regression else nn.CrossEntropyLoss())
    for name in metrics:
        handler.add_metric(name, {**CLASSIFICATION, **REGRESSION}[name]())
    return handler


def make_sgd(metrics: tuple[str, ...] = (), **options) -> fitkit.NNHandler:
    """The same with SGD, whose step is the cheapest."""
    return make(metrics, optimizer=torch.optim.SGD, lr=0.01, momentum=0.9, **options)


def state_of(handler: fitkit.NNHandler) -> dict:
    """The whole state in memory of the host, so that the device's is free for the next run."""
    return map_tensors(state_placement.copy_to_host, handler.get_state_dict())


def require_same(expected: dict, found: dict, what: str) -> None:
    """Fail if two states differ in a bit."""
    different = list(differences(expected, found))
    if different:
        path, one, other = different[0]
        values = " and ".join(" ".join(repr(value).split())[:40] for value in (one, other))
        raise AssertionError(f"{what}: {len(different)} leaves differ, first {path}: {values}")


def trained(build: Callable[[], fitkit.NNHandler], **fit) -> fitkit.NNHandler:
    handler = build()
    handler.fit(**fit)
    return handler


class Saving(fitkit.Callback):
    """Saves a run at chosen batches of its first epoch; the run goes on."""

    order = 10**6

    def __init__(self, places: list[tuple[str, int]], folder: Path) -> None:
        self.paths = {(phase, batch): folder / f"{phase}{batch}.pth" for phase, batch in places}

    def _save(self, phase: str, batch: int) -> None:
        path = self.paths.get((phase, batch + 1))
        if path is not None and self.handler.state.epoch == 0:
            self.handler.save(path)

    def on_train_batch_end(self, batch, logs):
        self._save("train", batch)

    def on_test_batch_end(self, batch, logs):
        self._save("test", batch)


def require_resumes(
    build: Callable[[], fitkit.NNHandler],
    folder: Path,
    places: list[tuple[str, int]],
    *,
    resumed: Callable[[], fitkit.NNHandler] | None = None,
    **fit,
) -> None:
    """Fail unless runs that are resumed at each place end bit for bit as one that was not saved.

    Args:
        build: makes a new handler.
        folder: for the checkpoints.
        places: where the run is saved.
        resumed: makes the handlers that go on; default: ``build``.
        **fit: arguments of ``fit``.
    """
    expected = state_of(trained(build, **fit))
    saving = Saving(places, folder)
    require_same(expected, state_of(trained(build, callbacks=[saving], **fit)), "saving changed it")
    for place, path in saving.paths.items():
        require(path.exists(), f"{place} was never reached")
        handler = trained(resumed or build, resume=path, **fit)
        phase, batch = place
        what = f"resumed after {batch} {'training' if phase == 'train' else 'validation'} batches"
        require_same(expected, state_of(handler), what)
        path.unlink()


def require_on_device(handler: fitkit.NNHandler, device: str | None = None) -> int:
    """Fail unless weights, buffers, moments and averaged weights are on the device."""
    wanted = torch.device(device or TARGET.name)
    found = dict(handler.module.state_dict())
    for number, values in enumerate(handler.optimizer.state.values()):
        # step counters may be on the host, as torch has them
        moments = {name: value for name, value in values.items() if name != "step"}
        found |= {f"{name} of parameter {number}": value for name, value in moments.items()}
    if handler.ema is not None:
        found |= {f"average of {name}": value for name, value in handler.ema.weights().items()}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    wrong = [
        f"{name} on {value.device}" for name, value in tensors.items() if value.device != wanted
    ]
    require(not wrong, f"{len(wrong)} tensors are not on {wanted}: {', '.join(wrong[:3])}")
    return len(tensors)


# ---- trust: devices, resuming, streams ----------------------------------------------------------


@check(seconds=6)
def a_run_trains_and_everything_is_on_its_device(folder):
    """The first use of the device, so its seconds include the start of CUDA."""
    handler = make(("accuracy",))
    fit = settings(epochs=3, ema_decay=0.9, gradient_clipping_norm=1.0)
    history = handler.fit(**fit).history
    count = require_on_device(handler)
    losses = history["loss"]
    require(np.isfinite([*losses, *history["val_loss"]]).all(), f"the loss is {losses}")
    require(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    predicted = handler.predict(fit["validation_data"][0])
    require(predicted.device.type == "cpu", f"predictions are on {predicted.device}")
    return f"{count} tensors, loss {losses[0]:.4f} -> {losses[-1]:.4f}"


@check(seconds=8)
def a_run_resumes_bit_for_bit_inside_an_epoch(folder):
    cases = Cases()
    kinds = [(), ("accuracy",), ("topk",), ("custom",)]
    kinds = [(names, False) for names in kinds] + [(("r2",), True), (("mse",), True)]
    if TARGET.is_small:
        kinds = [((), False), (("accuracy", "topk", "custom"), False), (("r2", "mse"), True)]
    for names, regression in kinds:
        with cases.case(" and ".join(names) or "no metric"):
            require_resumes(
                lambda n=names, r=regression: make(n, regression=r),
                folder,
                cuts(),
                ema_decay=0.9,
                **settings(regression=regression),
            )
    return cases.summary(f"sets of metrics, each resumed at {len(cuts())} places")


@check(seconds=6)
def accumulation_windows_clipping_bf16_and_fp16_resume_bit_for_bit(folder):
    cases = Cases()
    window, inside_a_window = (2, [("train", 3)]) if TARGET.is_small else (3, [("train", 7)])
    for name, options in {
        "windows": {"gradient_accumulation_steps": window, "gradient_clipping_value": 0.5},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "fp16"},
        "fp16 in windows": {"precision": "fp16", "gradient_accumulation_steps": window},
    }.items():
        with cases.case(name):
            if "fp16" in name and not (TARGET.has_float64 or TARGET.kind == "mps"):
                raise Skip("torch's scaler computes in float64")
            fit = settings(gradient_clipping_norm=1.0, **options)
            require_resumes(lambda: make(("accuracy",)), folder, inside_a_window, **fit)
    return cases.summary("settings")


TIMES = ("*seconds*", "*samples_per_second*", "*batches_per_second*", "*waiting_share*")
TIMES = (*TIMES, "*trace.json*", "*elapsed*")
# Trackers (TensorBoard, MLflow, W&B) need packages of their own: tests/callbacks has them.
KEEP_STATE: dict[str, Callable[[], fitkit.Callback]] = {
    "EMA": lambda: fitkit.EMA(0.8),
    "EarlyStopping": lambda: fitkit.EarlyStopping("loss", patience=3, restore_best_weights=True),
    "ReduceLROnPlateau": lambda: fitkit.ReduceLROnPlateau("loss", mode="max", patience=0),
    "TerminateOnNaN": lambda: fitkit.TerminateOnNaN(),
    "ModelCheckpoint": lambda: fitkit.ModelCheckpoint("run/{epoch}.pth", "loss", background=True),
    "AutoSaver": lambda: fitkit.AutoSaver(1, "auto", overwrite_last_saved=True),
    "CSVLogger": lambda: fitkit.CSVLogger("log.csv"),
    "JSONLinesLogger": lambda: fitkit.JSONLinesLogger("log.jsonl"),
    "GradientAccumulationScheduler": lambda: fitkit.GradientAccumulationScheduler({1: 2}),
    "LearningRateScheduler": lambda: fitkit.LearningRateScheduler(lambda epoch, lr: lr * 0.9),
    "LearningRateMonitor": lambda: fitkit.LearningRateMonitor(),
    "Profiler": lambda: fitkit.Profiler("trace.json", warmup=1, active=2),
    "Timer": lambda: fitkit.Timer(3600.0),
    "HTMLReport": lambda: fitkit.HTMLReport("report.html"),
}
WITH_TENSORS = ("EMA", "EarlyStopping", "ReduceLROnPlateau", "TerminateOnNaN", "ModelCheckpoint")


def make_for_boundaries(model: Callable[[], nn.Module] = small_model) -> fitkit.NNHandler:
    """A run of few batches, because each boundary is resumed."""
    handler = make_sgd(("accuracy",), model=model)
    handler.set_train_loader(data(4 * 16 - 5), batch_size=16)
    handler.set_val_loader(data(20), batch_size=16)
    return handler


@check(seconds=20)
def every_boundary_resumes_exactly_with_callbacks_that_keep_state(folder):
    cases, boundaries = Cases(), 0
    groups = {"all together": tuple(KEEP_STATE), **{name: (name,) for name in WITH_TENSORS}}
    for label, names in groups.items():
        with cases.case(label):
            boundaries += len(
                assert_resumes_exactly(
                    make_for_boundaries,
                    make_callbacks=lambda n=names: [KEEP_STATE[name]() for name in n],
                    ignore=TIMES,
                    every=(5 if len(names) > 1 else 11) if TARGET.is_small else 1,
                    epochs=2,
                )
            )
    return cases.summary(f"sets of callbacks, {boundaries} boundaries")


class KeepsTensors(fitkit.Callback):
    """A user's callback: sums on the device, in the containers that a state may have."""

    state_fields = ("total", "by_name", "recent", "on_host")

    def __init__(self) -> None:
        self.total = None
        self.by_name = {}
        self.recent = deque(maxlen=3)
        self.on_host = torch.zeros(2)
        self.restored_on: deque[str] = deque()  # a kind that assert_resumes_exactly leaves out

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        found = [self.total, *self.by_name.values(), *self.recent]
        self.restored_on.extend(str(one.device) for one in found if one is not None)
        require(self.on_host.device.type == "cpu", "a tensor of the host came back on the device")

    def on_train_batch_end(self, batch, logs):
        row = self.model[0].weight.detach().sum(1)
        # a tensor on another device is an error in each of these sums
        self.total = row if self.total is None else self.total + row
        self.by_name = {"total": self.total * 2, "loss": logs.raw("loss") + self.total[0]}
        self.recent.append(sum(self.recent, start=row))
        self.on_host = self.on_host + 1


@check(seconds=3)
def tensors_of_a_callback_come_back_on_the_device(folder):
    made: list[KeepsTensors] = []

    def callbacks() -> list[fitkit.Callback]:
        made.append(KeepsTensors())
        return [made[-1]]

    every = 4 if TARGET.is_small else 1
    tried = assert_resumes_exactly(
        make_for_boundaries, make_callbacks=callbacks, every=every, epochs=2
    )
    found = set().union(*(one.restored_on for one in made))
    require(found == {TARGET.name}, f"they came back on {sorted(found)}, not on {TARGET.name}")
    return f"a vector, a dict and a deque, {len(tried)} boundaries"


IMPLEMENTATIONS = {"plain": {}, "fused": {"fused": True}, "capturable": {"capturable": True}}


def implementations() -> dict[str, dict]:
    """Those of AdamW that this device has."""
    found = {}
    for name, options in IMPLEMENTATIONS.items():
        weight = nn.Parameter(torch.ones(2, device=TARGET.device))
        weight.grad = torch.ones_like(weight)
        with contextlib.suppress(RuntimeError, AssertionError, NotImplementedError):
            torch.optim.AdamW([weight], **options).step()
            found[name] = options
    return found


@check(seconds=5)
def optimizers_take_over_the_state_of_another_implementation(folder):
    cases, kinds = Cases(), implementations()
    wholes = {}
    for saved, options in kinds.items():
        handler = trained(lambda o=options: make(**o), **settings(epochs=1))
        handler.save(folder / f"{saved}.pth")
        wholes[saved] = state_of(trained(lambda o=options: make(**o), **settings()))
    for saved in kinds:
        for own, options in kinds.items():
            with cases.case(f"{saved} -> {own}"):
                handler = make(**options)
                handler.fit(resume=folder / f"{saved}.pth", **settings())
                steps = {str(v["step"].device) for v in handler.optimizer.state.values()}
                wanted = {"cpu" if own == "plain" else TARGET.name}
                require(steps == wanted, f"step counters are on {steps}, expected {wanted}")
                require_on_device(handler)
                group = handler.optimizer.param_groups[0]
                flags = {name: bool(group[name]) for name in ("fused", "capturable")}
                require(
                    flags == {name: own == name for name in flags}, f"it became another: {flags}"
                )
                if saved == own:
                    require_same(wholes[own], state_of(handler), "resumed")
    missing = [name for name in IMPLEMENTATIONS if name not in kinds]
    return cases.summary(f"pairs{f', without {missing}' if missing else ''}")


@check(seconds=3)
def a_learning_rate_in_a_tensor_resumes_on_its_device(folder):
    """With a schedule, which changes the tensor in place."""
    cases = Cases()
    options = {"plain": {"foreach": False}, "fused": {"fused": True}}
    options["capturable"] = {"capturable": True}
    for name in implementations():
        with cases.case(name):
            where = "cpu" if name == "plain" else TARGET.name

            def build(name=name, where=where) -> fitkit.NNHandler:
                handler = make(lr=torch.tensor(1e-3, device=where), **options[name])
                handler.set_scheduler(
                    torch.optim.lr_scheduler.ExponentialLR, interval="step", gamma=0.9
                )
                return handler

            made: list[fitkit.NNHandler] = []
            require_resumes(
                build,
                folder,
                cuts()[:1],
                resumed=lambda b=build, m=made: m.append(b()) or m[-1],
                **settings(),
            )
            rate = made[0].optimizer.param_groups[0]["lr"]
            require(isinstance(rate, Tensor), f"the rate became a {type(rate).__name__}")
            require(str(rate.device) == where, f"the rate is on {rate.device}, not on {where}")
    return cases.summary("implementations")


OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adagrad": {},
    "Adadelta": {"lr": 0.1},
    "Adamax": {},
    "ASGD": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "Adafactor": {"lr": 0.01},
}


@check(seconds=8)
def every_optimizer_of_torch_resumes_bit_for_bit(folder):
    cases = Cases()
    fit = settings()
    if TARGET.is_small:
        fit |= {"train_data": data(40), "validation_data": None}
    for name, options in OPTIMIZERS.items():
        with cases.case(name):
            kind = getattr(torch.optim, name, None)
            if kind is None:
                raise Skip("not in this torch")
            require_resumes(
                lambda k=kind, o=options: make(optimizer=k, **o), folder, [("train", 2)], **fit
            )
    return cases.summary("optimizers")


class Noisy(nn.Module):
    """Draws from the device's stream in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        return self.layer(inputs + 0.1 * torch.randn_like(inputs))


@check(seconds=2)
def the_random_stream_of_the_device_goes_on_after_a_resume(folder):
    require_resumes(lambda: make(model=Noisy), folder, cuts(), **settings())
    handler = make(model=Noisy)
    torch.manual_seed(5)
    before = TARGET.random_state()
    handler.fit(**settings())
    require(torch.equal(before, TARGET.random_state()), "fit moved the program's own stream")
    first, second = (torch.randn(3, device=TARGET.device).cpu() for _ in range(2))
    require(not torch.equal(first, second), "the stream of the device stands still")
    return f"{len(cuts())} places; the program's stream is untouched"


@check(seconds=1)
def a_handler_on_the_cpu_leaves_the_stream_of_the_device_alone(folder):
    TARGET.require_accelerator()
    torch.rand(3, device=TARGET.device)
    before = TARGET.random_state()
    handler = make(device="cpu")
    torch.manual_seed(1)  # it seeds every device
    if TARGET.kind == "mps":
        torch.mps.set_rng_state(before)
    else:
        TARGET.module.set_rng_state(before, TARGET.device)
    fit = settings()
    handler.fit(**fit)
    handler.evaluate(fit["validation_data"])
    fitkit.NNHandler(small_model(), "cpu", seed=3)
    require(torch.equal(before, TARGET.random_state()), "the stream of the device moved")
    return "seeded, trained and evaluated on the CPU"


@check(seconds=3)
def a_run_saved_on_one_device_resumes_on_another_index(folder):
    other = TARGET.other()
    if (
        TARGET.kind == "cuda"
        and len(set(map(torch.cuda.get_device_name, (TARGET.name, other)))) > 1
    ):
        raise Skip("the two devices are of different makes")

    def elsewhere() -> fitkit.NNHandler:
        return make(("accuracy",), model=Noisy, device=other)

    made: list[fitkit.NNHandler] = []
    fit = settings(ema_decay=0.9)
    if TARGET.simulation is not None:  # no gradients there: load and evaluate
        handler = trained(lambda: make(("accuracy",), model=Noisy), **fit)
        handler.save(folder / "run.pth")
        loaded = fitkit.NNHandler.load(folder / "run.pth", other, model_class=Noisy())
        loaded.set_loss_fn(nn.CrossEntropyLoss())
        loaded.add_metric("accuracy", fitkit.Accuracy())
        values = [one.evaluate(fit["validation_data"]) for one in (handler, loaded)]
        require_same(*values, f"evaluated on {other}")
        return f"{TARGET.name} -> {other}, {require_on_device(loaded, other)} tensors, evaluated"
    require_resumes(
        lambda: make(("accuracy",), model=Noisy),
        folder,
        cuts(),
        resumed=lambda: made.append(elsewhere()) or made[-1],
        **fit,
    )
    count = sum(require_on_device(handler, other) for handler in made)
    return f"{TARGET.name} -> {other}, {len(cuts())} places, {count} tensors"


def small_convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )


@check(seconds=4)
def two_runs_give_the_same_bits(folder):
    """Convolutions are only reported: cuDNN may choose algorithms that do not repeat themselves."""
    fit = settings(ema_decay=0.9)
    states = [state_of(trained(make, **fit)) for _ in "ab"]
    require_same(*states, "the second run")
    states = [state_of(trained(lambda: make(model=small_convolution), **fit)) for _ in "ab"]
    is_same = not list(differences(*states))
    return f"linear layers; a convolution {'too' if is_same else 'not, which cuDNN may do'}"


def wide_model(width: int) -> nn.Module:
    layers = [nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


@check(seconds=8)
def background_saves_hold_what_training_had(folder):
    """Weights and moments of a file are those of one instant, while training goes on."""
    kept, keys = [], ("model_state_dict", "optimizer_state_dict")

    class Keep(fitkit.Callback):
        order = 10**6

        def on_train_batch_end(self, batch, logs):
            state = self.handler.get_state_dict()
            # it stays on the device: a copy to the host would wait, also for the save
            kept.append({key: state[key] for key in keys})

    handler = make(model=lambda: wide_model(64 if TARGET.is_small else 1024))
    saver = fitkit.ModelCheckpoint(
        str(folder / "{global_step:03d}.pth"), save_freq=2, background=True, max_overhead=None
    )
    fit = settings(epochs=2, callbacks=[saver, Keep()])
    if not TARGET.is_small:
        fit["train_data"] = data(320)
    handler.fit(**fit)
    paths = sorted(folder.glob("*.pth"))
    require(paths, "no file was written")
    for path in paths:
        saved = single_or_sharded.read(path)
        expected = kept[int(path.stem) - 1]
        require_same(expected, {key: saved[key] for key in keys}, f"{path.name} is torn")
    return f"{len(paths)} files, {sum(p.stat().st_size for p in paths) / 1e6:.0f} MB"


@check(seconds=3)
def copies_under_load_are_not_torn(folder):
    """Kernels that change a tensor after its copy was asked for wait for the copy."""
    elements = 1 << (12 if TARGET.is_small else 26)
    source = torch.zeros(elements, device=TARGET.device)
    copies, torn, rounds = HostStaging(), 0, 20
    for value in range(1, rounds + 1):
        source.fill_(value)
        target = copies.reserve(source)
        copies.fetch()
        for _ in range(4):
            source.add_(1000.0)
        copies.wait()
        torn += int((target != value).any())
    require(not torn, f"{torn} of {rounds} copies are torn (fitkit/runtime/host_staging.py)")
    return f"{rounds} copies of {4 * elements / 1e6:.2g} MB"


def keep_busy() -> Tensor:
    """Some milliseconds of work that the host does not wait for."""
    width = 32 if TARGET.is_small else 4096
    a = torch.ones(width, width, device=TARGET.device)
    for _ in range(3):
        a = a @ a * 1e-4
    return a


@check(seconds=2)
def copies_to_the_host_are_waited_for(folder):
    wrong, rounds, elements = 0, 20, 1 << (10 if TARGET.is_small else 22)
    for value in range(rounds):
        tensor = torch.full((elements,), -1.0, device=TARGET.device)
        keep_busy()
        tensor.fill_(float(value))
        moved = to_device({"one": (tensor,)}, torch.device("cpu"))["one"][0]
        wrong += int((moved != value).any())
    require(not wrong, f"{wrong} of {rounds} copies were read too early (to_device to 'cpu')")
    return f"{rounds} copies while the device is behind"


@check(seconds=3)
def batches_hold_the_right_values_while_the_device_is_behind(folder):
    """From pinned memory, forgotten at once; from pageable memory, written to at once."""
    TARGET.require_accelerator()
    rounds, shape = (20, (16, 8)) if TARGET.is_small else (400, (256, 1024))
    has_pinned, sums = device_capabilities.has_async_copies(TARGET.device), []
    for value in range(rounds):
        if value % 10 == 0:
            keep_busy()
        batch, label = torch.full(shape, float(value)), torch.tensor([value])
        is_pinned = has_pinned and value % 4 != 0
        if is_pinned:
            batch, label = batch.pin_memory(), label.pin_memory()
        moved, moved_label = to_device((batch, label), TARGET.device)
        if not is_pinned:
            batch.fill_(-1.0)
        sums.append(torch.stack([moved.amin(), moved.amax(), moved_label[0].float()]))
        del batch, label, moved, moved_label
    found = torch.stack(sums).cpu()
    expected = torch.arange(rounds, dtype=torch.float32).unsqueeze(1).expand(-1, 3)
    wrong = int((found != expected).any(1).sum())
    require(not wrong, f"{wrong} of {rounds} batches are wrong (fitkit/runtime/device.py)")
    kinds = "pinned and pageable" if has_pinned else "pageable"
    return f"{rounds} batches of {4 * shape[0] * shape[1] / 1e3:.0f} kB, {kinds}"


@check(seconds=4)
def a_run_goes_from_the_device_to_the_cpu_and_back(folder):
    """And from the CPU to the device and back: inside training, then inside validation."""
    names, gaps = ("accuracy", "topk", "custom"), []
    fit = settings(ema_decay=0.9)
    for here, there in ((TARGET.name, "cpu"), ("cpu", TARGET.name)):
        first, second = Saving(cuts()[:1], folder), Saving(cuts()[2:], folder)
        whole = trained(lambda on=here: make(names, device=on), callbacks=[first], **fit)
        (path,) = first.paths.values()
        handler = trained(
            lambda on=there: make(names, device=on), resume=path, callbacks=[second], **fit
        )
        require_on_device(handler, there)
        (path,) = second.paths.values()
        back = trained(lambda on=here: make(names, device=on), resume=path, **fit)
        require_on_device(back, here)
        require(back.state.epoch == 2, f"it ended after {back.state.epoch} epochs")
        history, expected = back.history.history, whole.history.history
        require(list(history) == list(expected), f"columns became {list(history)}")
        gaps.append(abs(history["loss"][0] - expected["loss"][0]))
    # other random numbers, so other dropout, in a part of the first epoch
    require(max(gaps) < 0.5, f"the loss of the first epoch differs by {max(gaps):.3f}")
    return f"the loss of the first epoch differs by {max(gaps):.1e}"


@check(seconds=2)
def evaluate_and_predict_take_data_on_the_device(folder):
    inputs, targets = data(200)
    there = (inputs.to(TARGET.device), targets.to(TARGET.device))
    handler = trained(lambda: make(("accuracy", "topk")), **settings(epochs=1))
    found = [handler.evaluate(source, batch_size=64) for source in ((inputs, targets), there)]
    require_same(*found, "data on the device and on the host")
    outputs = [handler.predict(source, batch_size=64) for source in (inputs, there[0])]
    require(torch.equal(*outputs), "predictions of data on the device and on the host differ")
    require(outputs[1].device.type == "cpu", f"predictions are on {outputs[1].device}")
    trained(lambda: make(("accuracy",)), **settings(train_data=there, validation_data=there))
    return f"loss {found[1]['loss']:.4f}"


# ---- metrics ------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Its outputs are its inputs, on any device bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return inputs * self.scale


def metrics_on(device: str, names: tuple[str, ...], source: tuple[Tensor, Tensor]) -> dict:
    """Metrics over more batches than are added up at once, in training and in validation."""
    regression = names[0] in REGRESSION
    handler = make_sgd(names, model=Scaled, regression=regression, device=device)
    for group in handler.optimizer.param_groups:
        group["lr"] = 0.0
    size = len(source[0]) // 70
    fit = {"epochs": 1, "batch_size": size, "progress_bar": False, "shuffle": False}
    validation = tuple(one[: 5 * size - 3] for one in source)
    history = handler.fit(source, validation_data=validation, **fit).history
    return {key: history[key][0] for name in names for key in (name, f"val_{name}")}


def require_agreement(names: tuple[str, ...], source: tuple[Tensor, Tensor]) -> float:
    """The largest difference between the metrics on the CPU and on the device."""
    expected, found = (metrics_on(device, names, source) for device in ("cpu", TARGET.name))
    gaps = {key: abs(found[key] - value) for key, value in expected.items()}
    worst = max(gaps, key=gaps.get)
    detail = f"{worst} is {found[worst]!r}, on the CPU {expected[worst]!r}"
    require(all(gap <= 1e-6 * max(1.0, abs(expected[key])) for key, gap in gaps.items()), detail)
    return gaps[worst]


@check(seconds=3)
def every_metric_agrees_with_that_of_the_cpu(folder):
    cases, gaps = Cases(), [0.0]
    samples = 71 * (4 if TARGET.is_small else 32)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(samples, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    values = torch.randn(samples, 1, generator=generator)
    guesses = values + 0.5 * torch.randn(samples, 1, generator=generator)
    for name, (names, source) in {
        "classes": (tuple(CLASSIFICATION), (scores, labels)),
        "values": (tuple(REGRESSION), (guesses, values)),
        "R2Score of targets 2000 +- 1": (("r2",), (guesses + 2000.0, values + 2000.0)),
    }.items():
        with cases.case(name):
            gaps.append(require_agreement(names, source))
    count = len(CLASSIFICATION) + len(REGRESSION)
    return cases.summary(f"cases of {count} metrics, largest difference {max(gaps):.1e}")


@check(seconds=1)
def a_metric_of_a_user_works_in_both_spellings(folder):
    handler = trained(lambda: make(("custom", "stacked")), **settings())
    history = handler.history.history
    for name in ("", "val_"):
        pair = [history[f"{name}{spelling}"] for spelling in ("custom", "stacked")]
        require(np.isfinite(pair).all(), f"they are {pair}")
        require(np.allclose(*pair, rtol=0, atol=1e-6), f"they differ: {pair}")
    return f"mean output {history['custom'][-1]:.4f}"


# ---- waiting ------------------------------------------------------------------------------------


class NoWaiting(fitkit.Callback):
    """From one batch to another, waiting for the device is an error.

    CUDA raises where it happens. The simulated accelerator keeps a record, read at the end.
    """

    order = -1000

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.waits: list[tuple[str, str]] | None = None

    def _at(self, batch: int) -> None:
        if batch == self.first:
            if TARGET.simulation is not None:
                TARGET.simulation.waits.clear()
            else:
                torch.cuda.set_sync_debug_mode("error")
        elif batch == self.last:
            if TARGET.simulation is not None:
                self.waits = list(TARGET.simulation.waits)
            else:
                torch.cuda.set_sync_debug_mode("default")
                self.waits = []

    def on_train_batch_begin(self, batch, logs):
        self._at(batch)

    def on_test_batch_begin(self, batch, logs):
        self._at(batch)

    def on_exception(self, error):
        if TARGET.kind == "cuda":  # what ends training may wait
            torch.cuda.set_sync_debug_mode("default")

    def require_none(self) -> None:
        require(self.waits is not None, f"batch {self.last} was never reached")
        for what, line in self.waits or ():
            place = place_in_simulation(line)
            raise CheckError(f"{len(self.waits)} waits, first: {what} ({place})")


class OnlyInTraining(NoWaiting):
    def on_test_batch_begin(self, batch, logs):
        pass


def require_waits_can_be_seen() -> None:
    if TARGET.kind != "cuda" and TARGET.simulation is None:
        raise Skip(f"torch does not tell when the host waits for {TARGET.kind}")


def sources(samples: int, *, regression: bool) -> dict[str, tuple[object, dict]]:
    """The same data from where it may come, with arguments of ``fit``."""
    inputs, targets = data(samples, regression=regression)
    there = (inputs.to(TARGET.device), targets.to(TARGET.device))
    size = {"batch_size": batch_size()}
    pinned = DataLoader(
        TensorDataset(inputs, targets),
        shuffle=True,
        pin_memory=device_capabilities.has_async_copies(TARGET.device),
        **size,
    )
    return {
        "in memory": ((inputs, targets), size),
        "pinned loader": (pinned, {}),
        "on the device, shuffled": (there, {"shuffle": True, **size}),
        "windows": ((inputs, targets), {"gradient_accumulation_steps": 4, **size}),
    }


def wait_for_nothing(source, names, folder, *, regression: bool, last: int, **options) -> None:
    watch = OnlyInTraining(3, last)
    bar = io.StringIO()
    bar.isatty = lambda: True  # type: ignore[method-assign]
    callbacks = [
        watch,
        fitkit.CSVLogger(folder / "log.csv"),
        fitkit.TerminateOnNaN(check_every_n_batches=10_000),
    ]
    with contextlib.redirect_stderr(bar):
        callbacks.append(fitkit.ProgressBar(refresh_seconds=1e6))
        make_sgd(names, regression=regression).fit(
            source,
            epochs=1,
            ema_decay=0.9,
            gradient_clipping_norm=1.0,
            gradient_clipping_value=0.5,
            callbacks=callbacks,
            **options,
        )
    watch.require_none()


@check(seconds=12)
def training_steps_wait_for_nothing(folder):
    """With clipping, an average of weights, a progress bar, a log file and a look for NaN."""
    require_waits_can_be_seen()
    cases = Cases()
    batches = 68 if TARGET.is_small else 140  # more than are added up at once
    kinds = [("accuracy", "topk"), ("mse", "mae", "r2")]
    kinds = kinds if TARGET.is_small else [(name,) for names in kinds for name in names]
    for names in kinds:
        regression = names[0] in REGRESSION
        given = sources(batches * batch_size() - 5, regression=regression)
        if TARGET.is_small and regression:  # these two differ in nothing that a metric sees
            del given["pinned loader"], given["windows"]
        for label, (source, options) in given.items():
            with cases.case(f"{' and '.join(names)}, {label}"):
                wait_for_nothing(
                    source, names, folder, regression=regression, last=batches - 1, **options
                )
    return cases.summary(f"settings of {batches} batches")


@check(seconds=4)
def evaluation_waits_for_nothing_between_batches(folder):
    require_waits_can_be_seen()
    cases = Cases()
    batches = 68 if TARGET.is_small else 140
    for names in (("accuracy", "topk"), ("mse", "mae", "r2")):
        regression = names[0] in REGRESSION
        handler = make_sgd(names, regression=regression)
        given = sources(batches * batch_size() - 5, regression=regression)
        for label in ("in memory", "pinned loader", "on the device, shuffled"):
            with cases.case(f"{' and '.join(names)}, {label}"):
                source, options = given[label]
                watch = NoWaiting(2, batches - 1)
                options = {name: value for name, value in options.items() if name != "shuffle"}
                handler.evaluate(source, callbacks=[watch], **options)
                watch.require_none()
    return cases.summary(f"settings of {batches} batches")


# ---- memory -------------------------------------------------------------------------------------


def warm_up() -> None:
    """Libraries take their memory at their first use: it is not to be counted."""
    trained(make, **settings(epochs=1))


@check(seconds=12)
def a_resume_takes_no_more_memory_than_a_fresh_run(folder):
    width = 384 if TARGET.is_small else 4096
    path = folder / "wide.pth"
    fit = settings(epochs=1, ema_decay=0.9, validation_data=None)
    held: list[fitkit.NNHandler] = []
    warm_up()

    def fresh() -> None:
        held.append(trained(lambda: make(model=lambda: wide_model(width)), **fit))

    def loaded() -> None:
        model = wide_model(width)
        handler = fitkit.NNHandler.load(path, TARGET.name, model_class=model)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        handler.fit(**fit)

    def resumed() -> None:
        handler = make(model=lambda: wide_model(width))
        handler.fit(resume=path, **{**fit, "epochs": 2})

    peak = TARGET.peak_of(fresh)
    weights = sum(parameter.nbytes for parameter in held[0].module.parameters())
    held.pop().save(path)
    peaks = {name: TARGET.peak_of(f) for name, f in (("loaded", loaded), ("resumed", resumed))}
    shares = ", ".join(f"{name} {one / weights:.2f}" for name, one in peaks.items())
    detail = f"peak in sizes of the model: fresh {peak / weights:.2f}, {shares}"
    require(max(peaks.values()) < 1.1 * peak, detail)
    return detail


@check(seconds=5)
def memory_does_not_grow_from_epoch_to_epoch(folder):
    TARGET.require_accelerator()
    marks = []

    class Mark(fitkit.Callback):
        def on_epoch_end(self, epoch, logs):
            marks.append(TARGET.allocated())

    fit = settings(epochs=4 if TARGET.is_small else 12, callbacks=[Mark()], ema_decay=0.9)
    handler = make(("accuracy", "custom"))
    handler.fit(**fit)
    detail = f"{marks[1]} bytes after 2 epochs, {marks[-1]} after {len(marks)}"
    require(marks[-1] <= marks[1] + 65536, detail)
    during = TARGET.settled()
    handler.fit(**{**fit, "callbacks": []})
    require(TARGET.settled() <= during + 65536, f"a second fit keeps {TARGET.settled() - during}")
    return detail


@check(seconds=2)
def outputs_do_not_live_through_the_next_forward_pass(folder):
    TARGET.require_accelerator()
    classes = 1 << (12 if TARGET.is_small else 18)
    size, marks = batch_size(), []
    handler = make_sgd(("accuracy",), model=lambda: nn.Linear(WIDTH, classes))
    handler.module.register_forward_pre_hook(lambda *_: marks.append(TARGET.allocated()))
    source = data(8 * size)
    output, cases = 4 * size * classes, Cases()
    for name, run in {
        "training": lambda: handler.fit(source, epochs=1, batch_size=size, progress_bar=False),
        "evaluation": lambda: handler.evaluate(source, batch_size=size),
        "prediction": lambda: handler.predict(source[0], batch_size=size),
    }.items():
        with cases.case(name):
            marks.clear()
            run()
            more = max(marks[2:]) - TARGET.settled()
            require(more < output / 2, f"{more} bytes besides the model, an output has {output}")
    return cases.summary(f"phases with outputs of {output / 1e6:.1f} MB")


@check(seconds=3)
def pinned_memory_is_given_back_after_fit(folder):
    TARGET.pinned()  # may say that it cannot be known
    free_pinned_memory()
    before, during = TARGET.pinned(), []
    alive = TARGET.num_pinned()

    class Look(fitkit.Callback):
        def on_epoch_end(self, epoch, logs):
            during.append(TARGET.pinned())

    samples = 200 if TARGET.is_small else 100_000
    saver = fitkit.ModelCheckpoint(str(folder / "{epoch}.pth"), background=True)
    fit = settings(train_data=data(samples), callbacks=[Look(), saver], steps_per_epoch=10)
    handler = make(model=lambda: wide_model(64 if TARGET.is_small else 1024))
    handler.fit(**fit)
    gc.collect()
    after = TARGET.pinned()
    detail = f"{(max(during) - before) / 1e6:.2f} MB in use, {(after - before) / 1e6:.2f} MB after"
    require(max(during) > before, f"nothing was pinned: {detail}")
    require(after - before <= MEBIBYTE / (1024 if TARGET.is_small else 1), detail)
    kept = TARGET.num_pinned() - alive
    require(kept <= 0, f"{kept} pinned tensors are still referred to: {detail}")
    return detail


@contextlib.contextmanager
def limited_memory(limit: int) -> Iterator[None]:
    """Inside ``with`` the device has only so many bytes more than it has given away."""
    if TARGET.simulation is not None:
        simulation, most = TARGET.simulation, TARGET.settled() + limit
        usual = simulation.allocate

        def allocate(size: int):
            if simulation.allocated + size > most:
                raise torch.OutOfMemoryError("the simulated accelerator is out of memory")
            return usual(size)

        with mock.patch.object(simulation, "allocate", allocate):
            yield
        return
    TARGET.settled()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(TARGET.device).total_memory
    share = (torch.cuda.memory_reserved(TARGET.device) + limit) / total
    torch.cuda.set_per_process_memory_fraction(share, TARGET.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, TARGET.device)


@check(seconds=8)
def out_of_memory_is_recognized(folder):
    """A tensor that fits no machine; then a search for the largest batch in limited memory."""
    if TARGET.kind == "mps":
        raise Skip("MPS refuses a tensor by its size before it asks for memory")
    try:
        torch.empty(1 << 56, device=TARGET.device)
    except Exception as error:  # noqa: BLE001
        found = f"{type(error).__name__} {str(error).splitlines()[0][:80]}"
        require(is_out_of_memory(error), f"not recognized: {found}")
    else:
        raise AssertionError("the device has 2**58 bytes")
    if TARGET.kind not in ("cuda", SIM):
        return "a tensor of 2**58 bytes"
    width = 1 << (10 if TARGET.is_small else 16)
    samples = 128 if TARGET.is_small else 8192
    warm_up()
    layers = [nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES)]
    handler = make_sgd(model=lambda: nn.Sequential(*layers))
    before = TARGET.settled()
    limit = 600_000 if TARGET.is_small else 1 << 30
    with limited_memory(limit):
        size = handler.find_batch_size(data(samples), start=16, num_steps=1)
    left = TARGET.settled() - before
    detail = f"{size} samples in {limit / 1e6:.1f} MB, {left} bytes kept"
    require(16 <= size < samples, detail)
    require(left <= MEBIBYTE, detail)
    return detail


@check(seconds=2)
def fast_dev_run_leaves_state_and_memory_as_they_were(folder):
    TARGET.require_accelerator()
    fit = settings(ema_decay=0.9)
    handler = trained(lambda: make(("accuracy",)), **fit)
    state, before = state_of(handler), TARGET.settled()
    handler.fit(fast_dev_run=True, **fit)
    after = TARGET.settled()
    require_same(state, state_of(handler), "fast_dev_run")
    require_on_device(handler)
    require(abs(after - before) <= 4096, f"{before} bytes before, {after} after")
    return f"{before} bytes before, {after} after"


# ---- other parts --------------------------------------------------------------------------------


@check(seconds=8)
def the_profiler_writes_a_trace(folder):
    profiler = fitkit.Profiler(folder / "trace.json")
    trained(make, callbacks=[profiler], **settings(epochs=1))
    require(profiler.path.exists(), "there is no trace")
    require(profiler.table, "there is no table")
    text = profiler.path.read_text()
    kernels = text.count('"kernel"')
    return f"{len(text) / 1e6:.1f} MB, {kernels} kernels"


@check(seconds=5)
def deterministic_algorithms_train_and_resume(folder):
    with deterministic() as found:
        build = lambda: make(("accuracy",), model=small_convolution)  # noqa: E731
        require_resumes(build, folder, cuts()[:1], ema_decay=0.9, **settings())
    require(not torch.are_deterministic_algorithms_enabled(), "it stays on after the with block")
    return f"{len(found.settings)} settings, {len(found.remarks)} remarks"


class Recurrent(nn.Module):
    """Dropout between recurrent layers, whose random state cuDNN keeps to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs):
        return self.head(self.rnn(inputs.view(len(inputs), 4, 8))[0][:, -1])


@check(seconds=5)
def dropout_between_recurrent_layers_resumes_as_documented(folder):
    """Not exact with cuDNN, and no failure then; exact without it."""
    if TARGET.simulation is not None:
        raise Skip("the simulated accelerator has no recurrent layers")
    fit = settings()
    with torch.backends.cudnn.flags(enabled=False):
        require_resumes(lambda: make(model=Recurrent), folder, [("train", 2)], **fit)
    if TARGET.kind != "cuda":
        return "exact"
    try:
        require_resumes(lambda: make(model=Recurrent), folder, [("train", 2)], **fit)
    except AssertionError as error:
        where = str(error).partition(":")[0]
        return f"with cuDNN not exact, as documented ({where}); without cuDNN exact"
    return "with cuDNN exact; without cuDNN exact"


@check(seconds=3)
def a_device_that_is_not_the_first_is_used_alone(folder):
    other = TARGET.other()
    if TARGET.simulation is not None:
        raise Skip("the simulated accelerator has gradients on its first device alone")
    before = TARGET.settled()
    handler = trained(lambda: make(("accuracy",), device=other), **settings(ema_decay=0.9))
    taken = TARGET.settled() - before
    require(not taken, f"{taken} bytes of {TARGET.name} were taken")
    return f"{require_on_device(handler, other)} tensors on {other}, none on {TARGET.name}"


@check(seconds=60)
def several_devices_train_save_and_resume(folder):
    """Two processes started by torchrun, with DDP and with FSDP."""
    TARGET.require_cuda()
    TARGET.other()
    cases = Cases()
    for strategy in ("ddp", "fsdp"):
        with cases.case(strategy):
            start_several(strategy, folder)
    return cases.summary("strategies, bit for bit")


def start_several(strategy: str, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", __file__, "--device", TARGET.kind]
    command += ["--several", strategy, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line and ":" in line]
        detail = lines[0] if lines else (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckError(" ".join(detail.split())[:MAX_CHARACTERS])


def several(strategy: str, folder: Path) -> None:
    """What each of the processes does."""
    kind = TARGET.kind if TARGET.kind == "cpu" else None  # else the launcher decides

    def build() -> fitkit.NNHandler:
        torch.manual_seed(0)
        handler = fitkit.NNHandler(small_model(), kind, seed=0, strategy=strategy)
        handler.set_optimizer(torch.optim.AdamW, lr=1e-3)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        handler.add_metric("accuracy", fitkit.Accuracy())
        return handler

    def weights(handler: fitkit.NNHandler) -> dict[str, Tensor]:
        own = dict(handler.module.named_parameters())
        pieces = {n: p.to_local() if hasattr(p, "to_local") else p for n, p in own.items()}
        return map_tensors(state_placement.copy_to_host, pieces)

    fit = {**settings(ema_decay=0.9), "train_data": data(200), "batch_size": 16}
    whole = trained(build, **fit)
    path = folder / f"{strategy}-run"
    saver = fitkit.ModelCheckpoint(str(path / "{epoch}.pth"), background=True)
    trained(build, callbacks=[saver], **{**fit, "epochs": 1})
    saver = fitkit.ModelCheckpoint(str(path / "{epoch}.pth"), background=True)
    resumed = trained(build, resume=path, callbacks=[saver], **fit)
    require(resumed.state.epoch == 2, f"it ended after {resumed.state.epoch} epochs")
    require_same(weights(whole), weights(resumed), f"resumed with {strategy}")


@check(seconds=90)
def a_compiled_run_resumes_bit_for_bit(folder):
    """Compared with the run that was saved: another one would take half a minute more."""
    TARGET.require_cuda()
    has_compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    has_headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if not (importlib.util.find_spec("triton") and has_compiler and has_headers):
        raise Skip("torch.compile needs Triton, a C compiler and Python's headers")
    cases, build = Cases(), lambda: make(("accuracy",))
    for name, how in {"compile=True": True, "CUDA graphs": {"mode": "reduce-overhead"}}.items():
        fit = settings(compile=how, train_data=data(256))
        with cases.case(name):
            saving = Saving([("train", 3)], folder)
            (path,) = saving.paths.values()
            try:
                expected = state_of(trained(build, callbacks=[saving], **fit))
                require_same(expected, state_of(trained(build, resume=path, **fit)), "resumed")
            finally:
                torch._dynamo.reset()
    return cases.summary("ways to compile AdamW")


# ---- costs --------------------------------------------------------------------------------------


def by_hand(optimizer, source: tuple[Tensor, Tensor], epochs: int) -> Callable[[], None]:
    """The shortest loop that trains the same model on the same batches."""
    torch.manual_seed(0)
    model, loss_function = small_model().to(TARGET.device), nn.CrossEntropyLoss()
    stepper = optimizer(model.parameters())
    inputs, targets = source
    if device_capabilities.has_async_copies(TARGET.device):
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    size = batch_size()

    def run() -> None:
        for _ in range(epochs):
            for start in range(0, len(inputs), size):
                x = inputs[start : start + size].to(TARGET.device, non_blocking=True)
                y = targets[start : start + size].to(TARGET.device, non_blocking=True)
                stepper.zero_grad()
                loss_function(model(x), y).backward()
                stepper.step()

    return run


def seconds_of(function: Callable[[], object]) -> float:
    TARGET.synchronize()
    began = time.perf_counter()
    function()
    TARGET.synchronize()
    return time.perf_counter() - began


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """The ratio of the medians of times taken in turns."""
    first(), second()
    times = [(seconds_of(first), seconds_of(second)) for _ in range(rounds)]
    firsts, seconds = zip(*times, strict=True)
    return statistics.median(firsts) / statistics.median(seconds)


@check(seconds=12)
def a_step_costs_about_what_it_costs_by_hand(folder):
    """Only the ratio counts: seconds depend on the machine and on who else uses it."""
    batches, epochs, rounds = (8, 1, 3) if TARGET.is_small else (128, 2, 7)
    source = data(batches * batch_size())
    kinds = {
        "SGD": (make_sgd, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        "AdamW": (make, lambda p: torch.optim.AdamW(p, lr=1e-3)),
    }
    figures = []
    for name, (build, optimizer) in kinds.items():
        handler = build()
        fit = {"epochs": epochs, "batch_size": batch_size(), "progress_bar": False}
        own = ratio(
            lambda h=handler, f=fit: h.fit(source, shuffle=False, **f),
            by_hand(optimizer, source, epochs),
            rounds,
        )
        figures.append(f"{name} {own:.2f}")
    return f"fitkit / by hand: {', '.join(figures)} (medians of {rounds} rounds in turns)"


# ---- running them -------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside ``with`` more time than this is an error, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number, frame):
        raise OutOfTimeError(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fit_or_end(handler, *arguments, usual=fitkit.NNHandler.fit, **options):
    """``NNHandler.fit`` answers an interrupt by returning; here it ends the script."""
    history = usual(handler, *arguments, **options)
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def carry_out(function: Check, most: float) -> tuple[str, object]:
    """One check in a folder of its own: the verdict, and what there is to tell."""
    here = Path.cwd()
    try:
        TARGET.tidy()
        with tempfile.TemporaryDirectory() as folder, time_limit(most):
            detail = function(Path(folder).resolve())
            TARGET.require_safe_copies()
    except KeyboardInterrupt:
        raise
    except Skip as reason:
        return "SKIP", reason
    except BaseException as error:  # noqa: BLE001  one that fails must not end the others
        return "FAIL", described(error)
    else:
        return "PASS", detail
    finally:
        os.chdir(here)
        if TARGET.kind == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def run_all(chosen: list[tuple[Check, float]], budget: float) -> int:
    """Carry out checks, print a line for each, and return the number of failures."""
    began, counts, is_alive = time.monotonic(), {"PASS": 0, "FAIL": 0, "SKIP": 0}, True
    try:
        for function, seconds in chosen:
            at = time.monotonic()
            left = budget - (at - began)
            if not is_alive:
                verdict, detail = "SKIP", "the device does not answer any more"
            elif left <= (0.0 if TARGET.is_small else seconds):
                verdict, detail = "SKIP", f"it does not fit into the budget of {budget:.0f} s"
            else:
                most = min(max(60.0, 5 * seconds), left + GRACE_SECONDS)
                verdict, detail = carry_out(function, most)
                is_alive = verdict != "FAIL" or TARGET.answers()
            counts[verdict] += 1
            spent, detail = time.monotonic() - at, " ".join(str(detail).split())
            print(f"{verdict} {sentence_of(function)} ({spent:.1f} s): {detail}", flush=True)
    finally:  # an interrupt ends the run, and this line says how far it came
        found = f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped"
        print(f"{found}, {time.monotonic() - began:.0f} s", flush=True)
    return counts["FAIL"]


@contextlib.contextmanager
def target(name: str) -> Iterator[Target]:
    """The device of this name; a simulated one is there inside ``with`` only."""
    if name not in (SIM, SIM_WITHOUT_FLOAT64):
        yield Target(resolve_device(name))
        return
    path = ROOT / "tests" / "accelerator" / "sim.py"
    specification = importlib.util.spec_from_file_location("fitkit_sim", path)
    sim = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sim)
    with contextlib.ExitStack() as stack:
        has_float64 = name == SIM
        if has_float64:
            known = (*device_capabilities.WITH_FLOAT64, SIM)
            stack.enter_context(mock.patch.object(device_capabilities, "WITH_FLOAT64", known))
        known = (*device_capabilities.WITH_ASYNC_COPIES, SIM)
        stack.enter_context(mock.patch.object(device_capabilities, "WITH_ASYNC_COPIES", known))
        simulation = stack.enter_context(sim.switched_on(float64=has_float64))
        yield Target(resolve_device(SIM), simulation)


def as_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = "cuda (default), cuda:1, mps, xpu, cpu, sim, sim-without-float64"
    parser.add_argument("--device", default="cuda", help=kinds)
    parser.add_argument("--budget", type=float, default=450.0, help="seconds (default 450)")
    parser.add_argument("--only", default="", metavar="TEXT", help="part of a check's name")
    parser.add_argument("--list", action="store_true", help="name the checks and end")
    parser.add_argument("--table", action="store_true", help="time steps, eager and compiled")
    parser.add_argument("--several", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    global TARGET
    given = as_arguments(arguments)
    text = given.only.lower().replace("_", " ")
    chosen = [one for one in CHECKS if text in sentence_of(one[0])]
    if not chosen:
        print(f"no check has {given.only!r} in its name: --list names them. Nothing was checked.")
        return 1
    if given.list:
        for function, seconds in chosen:
            print(f"{sentence_of(function)} ({seconds:.0f} s)")
        print(f"{len(chosen)} checks, about {sum(one for _, one in chosen):.0f} s on a GPU")
        return 0
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("This needs a CUDA device, and torch sees none here: nothing was checked.")
        return 1
    if given.table:
        sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
        import devices

        devices.main(["--device", given.device])
        return 0
    gc.freeze()  # what was imported stays: collections are many, and look at the rest alone
    warnings.simplefilter("ignore")
    logging.getLogger("fitkit").addHandler(logging.NullHandler())
    if given.several:
        TARGET = Target(torch.device(given.device))
        several(given.several[0], Path(given.several[1]))
        return 0
    with contextlib.ExitStack() as stack:
        try:
            TARGET = stack.enter_context(target(given.device))
        except FitkitError as error:
            print(f"{error} Nothing was checked.")
            return 1
        if TARGET.is_small:
            torch.set_num_threads(1)
        stack.enter_context(mock.patch.object(fitkit.NNHandler, "fit", fit_or_end))
        print(TARGET.facts(), flush=True)
        return min(run_all(chosen, given.budget), MAX_STATUS)


if __name__ == "__main__":
    sys.exit(main())
