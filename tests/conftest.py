"""Fixtures that every test shares, above all the check that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import settings

from fitkit.core import device_capabilities

_WATCHED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_GRACE_SECONDS = 10.0


def _children() -> set[int]:
    """Process ids of the children of this process, zombies included, as /proc has them."""
    found = set()
    listed = list(Path("/proc/self/task").glob("*/children"))  # not every kernel has them
    for children in listed:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # of a thread that ended
            found |= set(map(int, children.read_text().split()))
    for stat in () if listed else Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name in parentheses may itself hold spaces and parentheses
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    # pytest, torch's compiler and polars, once imported, set variables of their own
    foreign = ("PYTEST_", "TORCHINDUCTOR_", "_RJEM_")
    return {name: value for name, value in environment.items() if not name.startswith(foreign)}


def _leftovers(threads: set[threading.Thread], children: set[int]) -> list[str]:
    # fetching the active ones also reaps those that have ended
    left = [f"process {child.name}" for child in multiprocessing.active_children()]
    left += [f"child {pid}" for pid in _children() - children]
    # Python makes a dummy for a thread it did not start, such as that of torch's backward pass
    started = (one for one in threading.enumerate() if not isinstance(one, threading._DummyThread))
    left += [f"thread {one.name}" for one in started if one not in threads]
    return left


# The same examples each time: a run that fails can be repeated, and one that passes says so again.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def _load_simulation():
    """The simulated accelerator; ``None`` for early releases of torch, which lack its hooks."""
    if not hasattr(torch._C, "_acc"):
        return None
    path = Path(__file__).parent / "accelerator" / "sim.py"
    specification = importlib.util.spec_from_file_location("fitkit_sim", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # torch counts devices at the first backward pass of a process, and knows one kind at a time
    if not torch.accelerator.is_available():
        module.register()
    return module


_SIM = _load_simulation()

# As many tests run at once as there are cores: threads of one would wait for those of another.
os.environ["OMP_NUM_THREADS"] = "1"
# Hundreds of programs are started: the library is compiled for the first of them only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
torch.set_num_threads(1)

# Trackers: no network, no reports about themselves, no look at the machine.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    WANDB_CONSOLE="off",
    WANDB_DISABLE_CODE="true",
    WANDB_DISABLE_GIT="true",
    WANDB_ERROR_REPORTING="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)


# ---- skipped tests: .ci/run runs them again where nothing may be missing ------------------------

_SKIPPED_BEFORE = "fitkit/skipped"  # in pytest's cache: node ids of tests and modules


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config, items):
    """Mark what the last run skipped, for ``-m skipped``."""
    before = set(config.cache.get(_SKIPPED_BEFORE, ()))
    for item in items:
        if before & {item.nodeid, item.nodeid.partition("::")[0]}:
            item.add_marker("skipped")


def pytest_terminal_summary(terminalreporter, config):
    reports = terminalreporter.stats.get("skipped", ())
    config.cache.set(_SKIPPED_BEFORE, [report.nodeid for report in reports])


def _without_skip(report):
    """The report, failed instead of skipped if the environment asks for all tests."""
    is_required = os.environ.get("FITKIT_TEST_REQUIRE") == "all"
    if is_required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in spite of FITKIT_TEST_REQUIRE=all: {report.longrepr[-1]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _without_skip((yield))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind():
    """No thread, child process, environment variable, process group or signal handler is left."""
    multiprocessing.active_children()
    threads, children = set(threading.enumerate()), _children()
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in _WATCHED_SIGNALS}
    yield
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := _leftovers(threads, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert not left, f"the test left behind: {left}"
    assert _ours(os.environ) == _ours(environment), "the test changed the environment"
    assert not torch.distributed.is_initialized(), "the test left a process group"
    for number, handler in handlers.items():
        assert signal.getsignal(number) is handler, f"the test changed the handler of {number!r}"


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_not_collected_again():
    """What earlier modules left in memory: each of many collections would go through all of it."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _without_coverage(node):
    """Programs that a test starts are no more looked at for coverage than the test itself.

    Tests that do the same again and again are marked with it: it doubles the time they take.
    """
    if not node.get_closest_marker("no_cover"):
        yield
        return
    before = _taken_from_environment("COVERAGE_")
    yield
    _taken_from_environment("COVERAGE_")  # pytest-cov sets it after each test
    os.environ.update(before)


def _taken_from_environment(prefix):
    return {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}


@pytest.fixture(autouse=True, scope="module")
def _uncovered_module(request):
    """For the module's fixtures, which start before those of a test."""
    with _without_coverage(request.node):
        yield


@pytest.fixture(autouse=True)
def _uncovered(request):
    """For the test."""
    with _without_coverage(request.node):
        yield


@pytest.fixture(autouse=True)
def _wandb_has_ended(_leaves_nothing_behind):
    """W&B's own process lives until the program ends, or until it is told."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory):
    """One database for all tests, as making its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.create_experiment("fitkit", artifact_location=f"{folder}/artifacts")
    return client


@pytest.fixture
def default_mlflow_store(mlflow_store, monkeypatch):
    """The database is where MLflow writes by default."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store.tracking_uri)


@pytest.fixture(autouse=True)
def _fixed_streams():
    """Every test begins with the same random streams."""
    random.seed(0)
    np.random.seed(0)
    # torch.manual_seed(0) also asks for every kind of device, which takes longer than most tests
    torch.default_generator.manual_seed(0)


@pytest.fixture
def fast_scratch(monkeypatch):
    """Scratch folders in memory: where numbers are tested, waiting for the disk shows nothing."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        monkeypatch.setattr(tempfile, "tempdir", str(memory))


@pytest.fixture(scope="session")
def _sim():
    """The module of the simulated accelerator."""
    if _SIM is None:
        pytest.skip("this release of torch has no hooks for a simulated accelerator")
    return _SIM


@contextlib.contextmanager
def _accelerated(sim, *, float64):
    """A simulated accelerator, ``"sim"``: with float64 as CUDA has it, or without as MPS."""
    if not sim.is_registered():
        pytest.skip("this machine has a real accelerator: run tests/scripts/on_cuda.py")
    with pytest.MonkeyPatch.context() as patch:
        if float64:
            patch.setattr(device_capabilities, "WITH_FLOAT64", ("cpu", "cuda", "sim"))
        patch.setattr(device_capabilities, "WITH_ASYNC_COPIES", ("cuda", "xpu", "sim"))
        with sim.switched_on(float64=float64) as simulation:
            yield simulation
            assert not simulation.overwritten, "memory changed while it was being copied from"
            # what is asynchronous on a real device may be so from and to pinned memory alone
            assert all(is_pinned for _, is_pinned, _ in simulation.copies), simulation.copies
            assert all(way == "to the device" for way, _, _ in simulation.copies)


@pytest.fixture(params=["float64", "no float64"])
def accelerator(request, _sim):
    """A simulated accelerator, with float64 and without."""
    with _accelerated(_sim, float64=request.param == "float64") as simulation:
        yield simulation


@pytest.fixture(params=["cpu", "accelerator", "accelerator without float64"])
def device(request, _sim):
    """The name of a device: the CPU's, and that of a simulated accelerator of either kind."""
    if request.param == "cpu":
        yield "cpu"
        return
    with _accelerated(_sim, float64=request.param == "accelerator"):
        yield "sim"


@pytest.fixture
def draw():
    """Draws once from each host stream; two equal draws mean equal streams."""

    def _draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    return _draw


# ---- process groups of this process alone ---------------------------------------------------


@pytest.fixture
def group():
    """Makes torch's default group, which ends with the test.

    A group of more ranks than one is torch's own stand-in, in which no other rank ever answers.
    """

    def make(backend, rank=0, size=1):
        from torch.testing._internal.distributed.fake_pg import FakeStore

        store = dist.HashStore() if size == 1 else FakeStore()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return dist.group.WORLD

    yield make
    gc.collect()  # what holds a group keeps its threads
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def mesh(group):
    """A mesh of one process."""
    from torch.distributed.device_mesh import init_device_mesh

    group("gloo")
    return init_device_mesh("cpu", (1,))


@pytest.fixture
def one_of_three(group):
    """Makes the mesh of three ranks, as one of them has it."""
    from torch.distributed.device_mesh import init_device_mesh

    def make(kind, rank):
        group("fake", rank, 3)
        return init_device_mesh(kind, (3,))

    return make
