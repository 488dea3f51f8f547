"""What is built from the repository can be installed where nothing of it lies, and is whole."""

from __future__ import annotations

import os
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
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fitkit").rglob("*.py")}


def run(*command: str, cwd: Path, **environment: str) -> str:
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**kept, **environment}
    )
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
    run(*install, "--no-index", "--ignore-installed", "-q", str(built[0]), cwd=folder)
    return python


def test_the_wheel_has_every_module_and_says_that_it_is_typed(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert names >= MODULES
    assert "fitkit/py.typed" in names
    inside = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("fitkit/") for name in inside)
    assert not [name for name in inside if name.endswith((".pyc", ".pth"))]


def test_the_wheel_names_version_licence_and_extras(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(path).decode()
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert f"\nVersion: {fitkit.__version__}\n" in text
    assert "\nLicense-Expression: MIT\n" in text
    assert "\nRequires-Dist: torch>=2.6\n" in text
    for extra in ("plot", "examples", "docs", "test"):
        assert f"\nProvides-Extra: {extra}\n" in text


def test_the_sdist_has_all_that_it_takes_to_build(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= MODULES | {"fitkit/py.typed", *BUILT_FROM}


def test_what_is_installed_imports_and_trains(python, tmp_path):
    program = """
import importlib.metadata, importlib.resources, pathlib, torch, fitkit
handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.MSELoss())
saver = fitkit.ModelCheckpoint("run/last.pth")
data = (torch.ones(8, 2), torch.ones(8, 1))
handler.fit(data, epochs=2, callbacks=[saver], progress_bar=False)
again = fitkit.NNHandler.load("run/last.pth")
assert torch.equal(again.module.weight, handler.module.weight)
assert importlib.resources.files("fitkit").joinpath("py.typed").is_file()
print(importlib.metadata.version("fitkit"), pathlib.Path(fitkit.__file__).parent)
"""
    version, where = run(str(python), "-W", "error", "-c", program, cwd=tmp_path).split()
    assert version == fitkit.__version__
    assert Path(where).is_relative_to(python.parents[1])
