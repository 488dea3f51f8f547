"""How these tests start processes, and how they make sure that none is left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fitkit.testing import differences

SCRIPT = Path(__file__).parents[1] / "scripts" / "shared_run.py"
TAG = "FITKIT_TEST_RUN"
STALLED_SECONDS = 60.0


@dataclass
class Ended:
    """What is left of a launch.

    Attributes:
        code: its exit code.
        output: what all its processes printed.
        seconds: how long it took.
        at: when it ended, as ``time.time`` has it.
    """

    code: int
    output: str
    seconds: float
    at: float


class Launch:
    """A run of the script, with all of its processes, wherever they went.

    Args:
        log: the file that takes what they print.
        command: what to run.
        environment: variables beside those of the tests.
    """

    def __init__(self, log: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self.tag = uuid.uuid4().hex
        self.began = time.time()
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**kept, "OMP_NUM_THREADS": "1", **environment, TAG: self.tag},
                start_new_session=True,
            )

    def members(self) -> list[int]:
        """Process ids of this launch: torchrun puts each worker into a session of its own."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{TAG}={self.tag}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended, or is not ours
                continue
        return found

    def print_stacks(self) -> None:
        """Let the processes of the script print where they are."""
        for pid in self.members():
            if str(SCRIPT).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2:3]:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(1)

    def kill(self) -> None:
        """SIGKILL to every process of this launch, until there is none."""
        while members := self.members():
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()

    def wait(self, timeout: float = 60.0) -> Ended:
        """The end of the launch; a failure of the test if that does not come in time."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"not over after {timeout} s:\n{self._log.read_text()}")
        now = time.time()
        return Ended(code, self._log.read_text(), now - self.began, now)

    def output(self) -> str:
        """What was printed so far."""
        return self._log.read_text()


def torchrun(processes: int, *options: str) -> list[str]:
    """How torchrun is started."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={processes}", "--monitor-interval=0.1", *options]


class Launcher:
    """Starts launches, and ends what is left of them."""

    def __init__(self) -> None:
        self._launches: list[Launch] = []

    def start(
        self,
        out: Path,
        *arguments: Any,
        processes: int = 2,
        options: tuple[str, ...] = (),
        command: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Launch:
        """Start the script through torchrun, or by itself for one process.

        Args:
            out: its folder.
            arguments: its further arguments.
            processes: how many.
            options: further options of torchrun.
            command: in place of torchrun.
            environment: variables beside those of the tests.
        """
        if command is None:
            command = torchrun(processes, *options) if processes > 1 else [sys.executable]
        log = out.parent / f"{out.name}-{len(self._launches)}.log"
        whole = [*command, str(SCRIPT), str(out), *map(str, arguments)]
        self._launches.append(Launch(log, whole, environment or {}))
        return self._launches[-1]

    def run(self, out: Path, *arguments: Any, timeout: float = 60.0, **how: Any) -> Ended:
        """Start the script and wait for its end."""
        return self.start(out, *arguments, **how).wait(timeout)

    def run_command(self, out: Path, command: list[str], timeout: float = 90.0) -> Ended:
        """Start something other than the script, and wait for its end."""
        self._launches.append(Launch(out.parent / f"{out.name}.log", command, {}))
        return self._launches[-1].wait(timeout)

    def run_script(self, script: Path, out: Path, *arguments: str, processes: int = 2) -> None:
        """Run another script, which gets ``out`` and ``arguments``, to its end without an error."""
        launch = torchrun(processes) if processes > 1 else [sys.executable]
        log = out / "-".join(["run", str(processes), *arguments])
        ended = self.run_command(log, [*launch, str(script), str(out), *arguments])
        assert ended.code == 0, ended.output

    def run_cases(self, out: Path, cases: Mapping[str, list[str]], *, processes: int) -> Path:
        """Run several cases in the same processes; after one that fails, the rest in new ones."""
        left = dict(cases)
        while left:
            out.mkdir(parents=True, exist_ok=True)
            (out / "cases.json").write_text(json.dumps(left))
            launch = self.start(out, "--cases", out / "cases.json", processes=processes)
            self._wait_for_progress(launch, [out / name for name in left])
            tried = [name for name in left if (out / name / "pid0").exists()]
            failed = [name for name in tried if not _is_complete(out / name, processes)]
            for name in failed:
                (out / name / "output.txt").write_text(launch.output())
            left = {name: how for name, how in left.items() if name not in tried}
            assert tried, launch.output()
        return out

    @staticmethod
    def _wait_for_progress(launch: Launch, folders: list[Path]) -> None:
        """Wait for the end; a launch in which nothing happens any more is killed."""
        seen, since = -1, time.monotonic()
        while launch.process.poll() is None:
            done = sum(1 for folder in folders for _ in folder.glob("rank*.pth"))
            if done != seen:
                seen, since = done, time.monotonic()
            if time.monotonic() - since > STALLED_SECONDS:
                launch.print_stacks()
                launch.kill()
            time.sleep(0.05)

    def members(self) -> list[int]:
        """Process ids of all launches."""
        return [pid for launch in self._launches for pid in launch.members()]

    def end(self) -> None:
        """Kill whatever is left."""
        for launch in self._launches:
            launch.kill()
        self._launches.clear()


def _is_complete(folder: Path, processes: int) -> bool:
    return all((folder / f"rank{rank}.pth").exists() for rank in range(processes))


# ---- what they left -----------------------------------------------------------------------------

PLACES_OF_A_CLOCK = ("times", "collectives")


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a process knew at the end; a failure of the test if it did not get there."""
    path = folder / f"rank{rank}.pth"
    if not path.exists():
        output = folder / "output.txt"
        pytest.fail(f"{path} was not written:\n{output.read_text() if output.exists() else ''}")
    found: dict[str, Any] = torch.load(path, weights_only=False)
    return {name: value for name, value in found.items() if name not in PLACES_OF_A_CLOCK}


def clock_of(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a process measured."""
    found: dict[str, Any] = torch.load(folder / f"rank{rank}.pth", weights_only=False)
    return {name: found[name] for name in PLACES_OF_A_CLOCK}


def error_of(folder: Path, rank: int) -> dict[str, Any]:
    """What a process raised."""
    found: dict[str, Any] = json.loads((folder / f"error{rank}.json").read_text())
    return found


def struck_at(folder: Path) -> float:
    """When the blow fell."""
    return float((folder / "struck").read_text())


def assert_equal(found: Any, expected: Any, *, but: tuple[str, ...] = ()) -> None:
    """Equal to the bit, some keys excepted."""
    wrong = list(
        differences(*({k: v for k, v in one.items() if k not in but} for one in (expected, found)))
    )
    assert not wrong, wrong[:5]


def assert_close(
    found: Any, expected: Any, tolerance: float, *, but: tuple[str, ...] = (), path: str = ""
) -> None:
    """Equal to rounding, measured against the largest element of a tensor."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected), path
        for key in expected:
            if key not in but:
                assert_close(found[key], expected[key], tolerance, path=f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), path
        for index, one in enumerate(expected):
            assert_close(found[index], one, tolerance, path=f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape, path
        largest = max(float(expected.abs().max()), 1e-3) if expected.numel() else 1.0
        assert float((found - expected).abs().max()) <= tolerance * largest, path
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-12), path
    else:
        assert found == expected, path


def results_of(script: Path, out: Path, *names: str, processes: int = 2) -> dict[str, Any]:
    """What a script writes on one process (``one``) and on several (``rank0``, ``rank1``, ...)."""
    for command in ([sys.executable], torchrun(processes)):
        subprocess.run([*command, str(script), str(out), *names], check=True, timeout=200)
    ranks = ("one", *(f"rank{rank}" for rank in range(processes)))
    return {rank: json.loads((out / f"{rank}.json").read_text()) for rank in ranks}


@pytest.fixture(scope="session")
def failing_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], dict]:
    """Runs cases of ``failing_ranks.py``; what each of the two ranks of a case left."""

    def run(names: list[str]) -> dict[str, list[dict[str, Any]]]:
        out = tmp_path_factory.mktemp("failing")
        script = SCRIPT.parent / "failing_ranks.py"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(out), *names]
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            try:
                process.wait(30 + 10 * len(names))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return {name: [_left_by(out / name, rank) for rank in (0, 1)] for name in names}

    return run


def _left_by(folder: Path, rank: int) -> dict[str, Any]:
    path, error_file = folder / f"rank{rank}.json", folder / f"error{rank}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"type": "nothing"}
    if (folder / "struck").exists() and "at" in found:
        found["seconds"] = found["at"] - struck_at(folder)
    if (folder / "struck").exists() and (folder / "ended.json").exists():
        ended = json.loads((folder / "ended.json").read_text())
        found["ended"] = ended[str(rank)]["at"] - struck_at(folder)
        found["code"] = ended[str(rank)]["code"]
    if error_file.exists():
        found["error file"] = json.loads(error_file.read_text())
    return found


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """How these tests look at what was left."""
    return SimpleNamespace(
        result=result,
        clock_of=clock_of,
        error_of=error_of,
        struck_at=struck_at,
        assert_equal=assert_equal,
        assert_close=assert_close,
        torchrun=torchrun,
        results_of=results_of,
    )


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    """Starts processes; at the end of the test none of them is left."""
    one = Launcher()
    yield one
    one.end()


@pytest.fixture(scope="session")
def shared_launcher() -> Iterator[Launcher]:
    """The same for runs that several tests look at."""
    one = Launcher()
    yield one
    one.end()


# ---- runs that several tests look at ------------------------------------------------------------

OF_UNKNOWN_END = ["--data", "stream", "--batch", "12"]
TRAJECTORIES: dict[str, list[str]] = {
    "arrays": ["--clip", "0.3", "--ema", "0.9"],
    "nothing_for_a_rank": ["--train", "1", "--val", "1", "--ema", "0.9"],
    "one_in_the_last_batch": ["--train", "17", "--val", "17", "--accumulation", "2"],
    "odd_batch": ["--batch", "7", "--data", "dataset", "--train", "36"],
    "augmented_by_workers": ["--data", "dataset", "--workers", "2", "--epochs", "2"],
    "loader": ["--data", "loader", "--workers", "1", "--epochs", "2", "--batch", "12"],
    "batch_sampler": ["--data", "sampler", "--batch", "12", "--train", "50"],
    "batches": ["--data", "batches", "--batch", "12", "--train", "50", "--val", "13"],
    "batches_in_windows": ["--data", "batches", "--batch", "12", "--accumulation", "3"],
    "windows": ["--accumulation", "4", "--clip", "0.5", "--custom"],
    "windows_of_unknown_end": [*OF_UNKNOWN_END, "--accumulation", "3"],
    "sparse": ["--model", "sparse", "--accumulation", "3", "--clip", "0.3", *OF_UNKNOWN_END],
    "validation_sets": ["--sets", "--train", "20", "--epochs", "2"],
    "float32": ["--dtype", "float32", "--clip", "0.3", "--accumulation", "2"],
}
# Ends inside the second window of each epoch of four batches.
SAVED_AT_EACH_STEP = ["--train", "29", "--epochs", "2", "--accumulation", "3", "--save-freq", "1"]
SAVED_AT_EACH_STEP += ["--keep", "--ema", "0.9", "--save-by-hand", "validation"]
SAVED: dict[str, list[str]] = {
    "plain": [*SAVED_AT_EACH_STEP, "--data", "dataset"],
    "exact": [*SAVED_AT_EACH_STEP, "--data", "dataset", "--dropout", "--norm", "--background"],
    "sets": [*SAVED_AT_EACH_STEP, "--data", "dataset", "--sets"],
    "noisy": [*SAVED_AT_EACH_STEP, "--noise", "--dropout"],
}
ALONE = ("plain",)
# What is killed: 28 steps, each with a save behind training, in windows of three batches.
KILLED = ["--train", "50", "--epochs", "4", "--accumulation", "3", "--dropout", "--save-freq", "1"]
KILLED += ["--background", "--delay", "0.01"]
# Ends early, at an epoch's end: 60 batches are never reached.
EARLY = ["--epochs", "60", "--patience", "2", "--auto-save"]
# Interrupted inside an epoch and a window, and saved by hand when ``fit`` has returned.
WINDOWS = ["--epochs", "2", "--accumulation", "3", "--dropout"]
INTERRUPTED = [*WINDOWS, "--delay", "0.1", "--strike", "SIGINT", "1", "2"]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Fills a folder in one of the workers of the test run; the others find it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        out = root / f"shared_{name}"
        with (root / f"shared_{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (out / "complete").exists():
                fill(out)
                (out / "complete").touch()
        return out

    return make


@pytest.fixture(scope="session")
def one(shared_launcher: Launcher, once: Callable[..., Path]) -> Path:
    """Everything in one process."""
    cases = {**TRAJECTORIES, **{name: SAVED[name] for name in ALONE}}
    return once("one", lambda out: shared_launcher.run_cases(out, cases, processes=1))


@pytest.fixture(scope="session")
def two(shared_launcher: Launcher, once: Callable[..., Path]) -> Path:
    """Everything in two processes."""
    cases = {**TRAJECTORIES, **SAVED, "killed": KILLED, "early": EARLY}
    cases |= {"interrupted": [*INTERRUPTED, "--save-after"], "uninterrupted": WINDOWS}
    cases["continued"] = [*INTERRUPTED, "--resume", "--again"]
    return once("two", lambda out: shared_launcher.run_cases(out, cases, processes=2))


@pytest.fixture(scope="module")
def places(request: pytest.FixtureRequest) -> set[str]:
    """Where the chosen tests of the module go on; the others are not tried."""
    ours = [item for item in request.session.items if item.path == request.path]
    found = [item.callspec.params for item in ours if hasattr(item, "callspec")]
    return {params["place"] for params in found if "place" in params}


@pytest.fixture(scope="session")
def cases() -> SimpleNamespace:
    """The arguments of those runs."""
    return SimpleNamespace(
        trajectories=TRAJECTORIES, saved=SAVED, killed=KILLED, early=EARLY, windows=WINDOWS
    )
