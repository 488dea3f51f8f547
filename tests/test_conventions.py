"""What is promised in several places is the same in all of them, and the checkers agree."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fitkit
from fitkit import Callback, Event

REPOSITORY = Path(__file__).parents[1]
LIBRARY = REPOSITORY / "fitkit"
MODULES = sorted(["fitkit", *(m.name for m in pkgutil.walk_packages(fitkit.__path__, "fitkit."))])


# ---- the public list ----------------------------------------------------------------------------


def test_the_public_list_is_what_can_be_imported():
    listed = fitkit.__all__
    assert len(listed) == len(set(listed))
    names = vars(fitkit.api)
    modules = {name for name, value in names.items() if inspect.ismodule(value)}
    public = {name for name in names if not name.startswith("_")} - modules
    assert set(listed) - {"__version__"} == public
    assert "__version__" in listed
    assert set(dir(fitkit)) >= set(listed)
    assert all(getattr(fitkit, name) is getattr(fitkit.api, name) for name in listed)


def test_a_star_import_gives_the_public_list():
    namespace: dict[str, object] = {}
    exec("from fitkit import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(fitkit.__all__)


def test_every_callback_is_exported():
    found = set()
    for name in MODULES:
        for member in vars(importlib.import_module(name)).values():
            if isinstance(member, type) and issubclass(member, Callback):
                found.add(member)
    ours = ("fitkit.callbacks.", "fitkit.checkpointing.", "fitkit.core.")
    concrete = {c for c in found if c.__module__.startswith(ours)}
    unexported = {c.__name__ for c in concrete} - set(fitkit.__all__)
    # bases that hold what several callbacks share
    assert {c.__name__ for c in concrete if c.__subclasses__()} >= unexported


# ---- documentation strings ----------------------------------------------------------------------


def public_members(module):
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(member) or inspect.isfunction(member):
            yield f"{module.__name__}.{name}", member
        if inspect.isclass(member):
            for inner, value in vars(member).items():
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{module.__name__}.{name}.{inner}", function


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), name
    for path, member in public_members(module):
        assert inspect.getdoc(member), f"{path} has no docstring"


def described_arguments(text: str) -> set[str]:
    section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return set()
    return set(re.findall(r"^[ ]{4}\**(\w+): ", section.group(1), re.MULTILINE))


@pytest.mark.parametrize("name", MODULES)
def test_described_arguments_exist_and_are_complete(name):
    for path, member in public_members(importlib.import_module(name)):
        own_init = "__init__" in vars(member) if inspect.isclass(member) else True
        described = described_arguments(inspect.getdoc(member) or "")
        if not described or not own_init:
            continue
        function = member.__init__ if inspect.isclass(member) else member
        taken = set(inspect.signature(function).parameters) - {"self", "cls"}
        unknown = described - taken - {"cls"}
        assert not unknown, f"{path} describes {unknown}, which it does not take"
        assert taken <= described, f"{path} takes {taken - described}, which it does not describe"


# ---- events -------------------------------------------------------------------------------------


def hooks_of_callback() -> set[str]:
    return {name for name in vars(Callback) if name.startswith("on_")}


def test_events_and_hooks_are_the_same():
    assert {event.value for event in Event} == hooks_of_callback()


def test_the_documented_table_has_the_same_events():
    text = (REPOSITORY / "docs" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(on_\w+)", text, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == hooks_of_callback()


def test_the_diagram_shows_every_event_of_fit():
    drawn = set(re.findall(r"on_\w+", inspect.getdoc(Event) or ""))
    assert hooks_of_callback() - drawn == {
        name for name in hooks_of_callback() if "predict" in name
    }
    assert drawn <= hooks_of_callback()


# ---- checkers -----------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "--no-cache"], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "--no-cache"], id="ruff format"),
        pytest.param(["mypy"], id="mypy", marks=pytest.mark.slow),
    ],
)
def test_checkers_find_nothing(command):
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


# ---- the cost of importing ----------------------------------------------------------------------


def run_fresh(statement: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", statement],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_importing_brings_nothing_heavy():
    loaded = run_fresh("import fitkit, sys; fitkit.NNHandler; print(*sys.modules)").split()
    heavy = {"click", "matplotlib", "sklearn", "torchmetrics", "torchdata", "scipy", "pandas"}
    heavy |= {"tensorboard", "mlflow", "wandb", "onnx", "safetensors"}
    assert not heavy & {name.split(".")[0] for name in loaded}


def test_what_needs_no_public_name_imports_no_torch():
    looks = "hasattr(fitkit, '__wrapped__'), fitkit.__version__"
    loaded = f"import fitkit.cli.ls, sys; {looks}; print('torch' in sys.modules)"
    assert run_fresh(loaded) == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["NNHandler", "callbacks.timer.Timer", "generative.sde.SDE", "__all__"]
)
def test_public_names_are_imported_when_the_first_one_is_used(first):
    assert run_fresh(f"import fitkit; fitkit.{first}") == ""


def test_an_unknown_name_is_an_attribute_error():
    unknown = "import fitkit, gc\ntry: fitkit.NNHandlr\nexcept AttributeError as e: print(e)\n"
    message = "module 'fitkit' has no attribute 'NNHandlr'"
    assert run_fresh(f"{unknown}print(gc.isenabled())") == f"{message}\nTrue\n"


@pytest.mark.slow
@pytest.mark.no_cover
def test_importing_costs_little_more_than_torch(tmp_path):
    """Processor time of all that ``from fitkit import NNHandler`` imports beyond torch."""
    clock = "from time import process_time as now; a = now(); import torch; b = now()"
    statement = f"{clock}; from fitkit import NNHandler; print((now() - a) / (b - a))"
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    run_fresh("import fitkit; fitkit.NNHandler", **compiled)  # as an installed package is compiled
    # other work on the machine disturbs some runs
    assert any(float(run_fresh(statement, **compiled)) <= 1.15 for _ in range(6))


def test_importing_changes_nothing_in_the_process():
    before = "import torch, random, signal, warnings, logging; random.seed(0); torch.manual_seed(0)"
    state = "(random.random(), float(torch.rand(())), signal.getsignal(2), len(warnings.filters))"
    plain = run_fresh(f"{before}; print({state}, logging.root.handlers)")
    used = "import fitkit; fitkit.NNHandler"
    with_fitkit = run_fresh(f"{before}; {used}; print({state}, logging.root.handlers)")
    assert plain == with_fitkit


# ---- tests mirror files -------------------------------------------------------------------------

# Files without a test file of their own, and where they are tested.
TESTED_ELSEWHERE = {
    "__main__.py": "the command is started in tests/cli and tests/test_packaging.py",
    "api.py": "the public list; this file compares it",
    "callbacks/saving.py": "an alias; tests/test_seed_documents.py imports it",
    "checkpointing/checkpoint.py": "an alias of storage/single_or_sharded.py",
    "checkpointing/storage/archive.py": "tests/checkpointing/storage/test_safe_load.py",
    "checkpointing/save_queue/save_source.py": "a protocol; handler/save_source.py implements it",
    "checkpointing/savers/save_request.py": "data of tests/checkpointing/save_queue",
    "checkpointing/format/tags.py": "constants; tests/checkpointing/format/test_encoding.py",
    "cli/all_commands.py": "every test of tests/cli runs it",
    "core/limits.py": "a constant; tests/checkpointing/format/test_encoding.py",
    "distributed/distributed_world.py": "tests/distributed/test_world.py has both worlds",
    "engine/run.py": "tests/engine/test_loop.py and tests/training/test_rank_sync.py",
    "version.py": "a constant; tests/test_packaging.py compares it",
}


def test_every_file_has_a_test_file():
    sources = [path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py")]
    missing = {
        path.as_posix()
        for path in sources
        if path.name != "__init__.py"
        and not (REPOSITORY / "tests" / path.parent / f"test_{path.name}").is_file()
    }
    assert missing == TESTED_ELSEWHERE.keys()
