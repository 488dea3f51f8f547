"""Which names the statements of a module bind and use."""

from __future__ import annotations

import functools
import sys
import types

import pytest

from fitkit.checkpointing.model_source.statements import (
    absolute_module,
    find_definition,
    module_source,
    parse_statements,
)


def only(source):
    (statement,) = parse_statements(source)
    return statement


@pytest.mark.parametrize(
    ("source", "binds", "uses"),
    [
        ("a = b + c", {"a"}, ["b", "c"]),
        ("import a.b, c as d", {"a", "d"}, []),
        ("from a import b as c", {"c"}, []),
        ("def f(x=a):\n    y = x\n    return g(y)", {"f"}, ["a", "g"]),
        (
            "@wrap\nclass A(Base):\n    size = N\n    def f(self):\n        return K",
            {"A"},
            ["K", "N"],
        ),
        ("for i in range(n):\n    t = i", {"i", "t"}, ["range", "n", "i"]),
        ("print(x)", set(), ["print", "x"]),
    ],
)
def test_names(source, binds, uses):
    assert only(source).binds == binds
    assert set(only(source).uses) & set("abcgixnKN") == set(uses) & set("abcgixnKN")


def test_a_statement_has_its_decorators_and_all_its_lines():
    source = "x = 1\n\n@one\n@two(\n    3)\ndef f():\n    return '''\n  text'''\n# after\ny = 2\n"
    first, second, third = parse_statements(source)
    assert second.text == "@one\n@two(\n    3)\ndef f():\n    return '''\n  text'''"
    assert (first.text, third.text) == ("x = 1", "y = 2")
    assert (first.is_definition, second.is_definition) == (False, True)
    assert parse_statements("def f(:") == []


def test_imports():
    statement = only("def f():\n    import a.b\n    from ..c import d as e\n    from . import g")
    assert list(statement.imports()) == [("a.b", None, "a"), ("..c", "d", "e"), (".", "g", "g")]
    assert only("from ..a import *").star_module == "..a"
    assert only("from a import b").star_module is None
    assert not statement.is_import


def test_attribute_chains():
    chains = list(only("x = a.b.c + d[0].e + f().g").attribute_chains())
    assert chains == [["a", "b", "c"], ["a", "b"]]


def test_of_an_import_only_what_is_needed_stays():
    module = types.ModuleType("pack.sub.mod")
    module.__package__ = "pack.sub"
    assert only("import a.b, c as d").text_binding("d", module) == "import c as d"
    assert only("from ..x import y, z").text_binding("z", module) == "from pack.x import z"
    assert only("v = 1").text_binding("v", module) == "v = 1"
    assert absolute_module(module, ".") == "pack.sub"


def test_the_source_of_a_module():
    assert module_source(sys) == ""
    assert "def find_definition(value" in module_source(sys.modules[find_definition.__module__])


def decorated(function):
    @functools.wraps(function)
    def inner():
        return function()

    return inner


def test_a_definition_inside_a_function_loses_its_indentation():
    class Inner:
        def f(self):
            return """
  kept"""

    @decorated
    def wrapped():
        return 1

    assert find_definition(Inner).splitlines()[2:] == ['        return """', '  kept"""']
    assert find_definition(wrapped) == "@decorated\ndef wrapped():\n    return 1\n"
    assert find_definition(int) is None
    assert find_definition(type("Made", (), {})) is None


@pytest.mark.parametrize("character", ["\x0c", "\x1c", "\u2028"])
def test_only_newlines_end_lines(character):
    source = (
        f"x = 1\n{character if character == chr(12) else ''}\ntext = 'a{character}b'\n\nz = 3\n"
    )
    assert [s.text.strip() for s in parse_statements(source)] == [
        "x = 1",
        f"text = 'a{character}b'",
        "z = 3",
    ]
