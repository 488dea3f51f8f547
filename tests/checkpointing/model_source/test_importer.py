"""Import the model source that a checkpoint holds."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from fitkit import CheckpointError
from fitkit.checkpointing.model_source.collect import HEADING, PACKAGE
from fitkit.checkpointing.model_source.importer import import_stored_source


def code_of(**sources):
    return "".join(
        f"{HEADING}{name.replace('__', '.')}\n{text}\n" for name, text in sources.items()
    )


@pytest.fixture(autouse=True)
def _unchanged():
    before, finders = dict(sys.modules), list(sys.meta_path)
    yield
    assert sys.meta_path == finders
    assert not [name for name in sys.modules if name.startswith("stored")]
    assert all(sys.modules[name] is module for name, module in before.items())


def test_a_module_may_use_one_that_comes_later():
    with import_stored_source(code_of(stored_a="import stored_b", stored_b="VALUE = 4")):
        assert sys.modules["stored_a"].stored_b.VALUE == 4
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("stored_a")


def test_packages():
    code = f"{HEADING}stored{PACKAGE}\nVALUE = 5\n{HEADING}stored.part\nfrom . import VALUE\n"
    with import_stored_source(code):
        assert sys.modules["stored.part"].VALUE == 5
        assert sys.modules["stored"].part is sys.modules["stored.part"]


def test_the_program_s_module_of_that_name_comes_back(monkeypatch, tmp_path):
    (tmp_path / "shared_name.py").write_text("VALUE = 'of the program'")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("shared_name")
    monkeypatch.setitem(sys.modules, "shared_name", own)
    with import_stored_source(code_of(shared_name="VALUE = 6")):
        assert sys.modules["shared_name"].VALUE == 6
    assert sys.modules["shared_name"] is own


def test_one_module_in_two_parts():
    code = code_of(stored_a="X = 1", stored_b="Y = 1") + code_of(stored_a="Z = X + 1")
    with import_stored_source(code):
        assert sys.modules["stored_a"].Z == 2


def test_the_source_is_shown():
    with import_stored_source(code_of(stored_a="def f():\n    return 1")):
        assert inspect.getsource(sys.modules["stored_a"].f) == "def f():\n    return 1\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import not_installed_here", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_fails_is_named(text, error):
    code = code_of(stored_a="VALUE = 1", stored_b=text)
    refused = pytest.raises(CheckpointError, match=rf"'stored_b', {error}.*model_class=")
    with refused, import_stored_source(code):
        raise AssertionError("the body must not run")


@pytest.mark.parametrize("code", ["", "class Net: pass\n", f"x = 1  {HEADING}stored\n"])
def test_code_without_a_heading(code):
    refused = pytest.raises(CheckpointError, match="import the model's class first")
    with refused, import_stored_source(code):
        raise AssertionError("the body must not run")
