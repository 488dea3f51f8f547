"""What is built from the repository can be installed where nothing of it lies, and is whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import fitkit

pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("fitkit", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")
NAME = "fitkit-torch"  # of the distribution: another project is called fitkit on the index
# what the library imports beyond its three dependencies, for those who have it
OPTIONAL = ("alembic", "click", "matplotlib", "mlflow", "onnx", "onnxscript", "safetensors",
            "scipy", "sqlalchemy", "tensorboard", "torchdata", "torchmetrics", "wandb")  # fmt: skip
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fitkit").rglob("*.py")}


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**kept, **environment}
    )


def run(*command: str, cwd: Path) -> str:
    ended = call(*command, cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, as ``python -m build`` makes them from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # without isolation nothing is fetched; the wheel is made from the sdist, as ever
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    (wheel,) = (source / "dist").glob("*.whl")
    (sdist,) = (source / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def python(tmp_path_factory, built):
    """A new environment that has the wheel, and torch from the one around it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True, symlinks=True)
    python = folder / "bin" / "python"
    # one environment around another: packages of the outer one are found through a .pth file
    (packages,) = folder.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "outer.pth").write_text("\n".join(outer))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    run(*install, "--no-index", "--ignore-installed", "-q", f"{built[0]}[cli,plot]", cwd=folder)
    return python


def test_the_wheel_has_every_module_and_says_that_it_is_typed(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert names >= MODULES
    assert "fitkit/py.typed" in names
    inside = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("fitkit/") for name in inside)
    assert not [name for name in inside if name.endswith((".pyc", ".pth"))]


@pytest.fixture(scope="module")
def metadata(built):
    """What the wheel says about itself, line by line."""
    with zipfile.ZipFile(built[0]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return wheel.read(path).decode().splitlines()


def test_the_wheel_names_itself_version_license_and_extras(built, metadata):
    assert built[0].name == f"fitkit_torch-{fitkit.__version__}-py3-none-any.whl"
    expected = {f"Name: {NAME}", f"Version: {fitkit.__version__}", "License-Expression: MIT"}
    extras = ("all", "cli", "plot", "examples", "docs", "test")
    expected |= {f"Provides-Extra: {extra}" for extra in extras}
    assert expected <= set(metadata)
    names = zipfile.ZipFile(built[0]).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_base_dependencies_are_three_and_click_is_an_extra(metadata):
    required = [line.partition(": ")[2] for line in metadata if line.startswith("Requires-Dist")]
    base = {re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line}
    assert base == {"torch", "numpy", "tqdm"}
    (click,) = (line for line in required if line.startswith("click"))
    assert click.endswith('extra == "cli"')
    own = {line.partition("extra == ")[2] for line in required if re.match(rf"{NAME}\[.*cli", line)}
    assert own == {'"all"', '"examples"'}
    assert [line for line in required if re.match(rf'{NAME}\[.*all.* extra == "test"', line)]


def test_the_sdist_has_all_that_it_takes_to_build(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= MODULES | {"fitkit/py.typed", *BUILT_FROM}


def test_with_the_base_dependencies_all_modules_import_and_a_handler_trains(python, tmp_path):
    program = f"""
import importlib, importlib.metadata, importlib.resources, pathlib, pkgutil, sys, torch
sys.modules.update(dict.fromkeys({OPTIONAL}))  # importing them raises
import fitkit
for module in pkgutil.walk_packages(fitkit.__path__, "fitkit."):
    if not module.name.startswith("fitkit.cli."):
        importlib.import_module(module.name)
handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.MSELoss())
saver = fitkit.ModelCheckpoint("run/last.pth")
data = (torch.ones(8, 2), torch.ones(8, 1))
handler.fit(data, epochs=2, callbacks=[saver], progress_bar=False)
again = fitkit.NNHandler.load("run/last.pth")
assert torch.equal(again.module.weight, handler.module.weight)
assert importlib.resources.files("fitkit").joinpath("py.typed").is_file()
print(importlib.metadata.version("{NAME}"), pathlib.Path(fitkit.__file__).parent)
"""
    version, where = run(str(python), "-W", "error", "-c", program, cwd=tmp_path).split()
    assert version == fitkit.__version__
    assert Path(where).is_relative_to(python.parents[1])


@pytest.mark.parametrize("program", ["fitkit", "python -m fitkit"])
def test_the_command_needs_click_and_says_so_in_one_sentence(python, tmp_path, program):
    command, *options = program.split()
    start = (str(python.parent / command), *options)
    assert fitkit.__version__ in run(*start, "--version", cwd=tmp_path)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['click'] = None\n")
    ended = call(*start, "ls", ".", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "The command fitkit needs a package that is not installed: pip install click\n"
    )


# ---- what users are told to install -------------------------------------------------------------

FROM_THE_INDEX = re.compile(r"fitkit(?:[-_]torch)?\[|pip install (?:-\S+ )*[\"']?fitkit")
TELLING = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
TELLING += [path for room in ("docs", "examples", "fitkit") for path in (ROOT / room).rglob("*.*")
            if path.suffix in (".md", ".py", ".yml")]  # fmt: skip


def test_nobody_is_told_to_install_fitkit_from_the_index():
    """It is not there, and an unrelated project has its name."""
    found = {path.name: FROM_THE_INDEX.findall(path.read_text()) for path in TELLING}
    assert not {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("pip install fitkit", True),
        ('pip install -U "fitkit-torch[plot]"', True),
        ("the extra fitkit[plot]", True),
        ('pip install -e ".[plot]"', False),
        ('pip install "dist/fitkit_torch-0.2.0-py3-none-any.whl[plot]"', False),
    ],
)
def test_the_check_knows_an_installation_from_the_index(text, is_refused):
    assert bool(FROM_THE_INDEX.search(text)) is is_refused


def test_documents_state_this_version():
    stated = re.compile(r"(?:dist/fitkit_torch-|written by fitkit )(\d+\.\d+\.\d+)")
    found = {path.name: set(stated.findall(path.read_text())) for path in TELLING}
    assert set().union(*found.values()) == {fitkit.__version__}, found
