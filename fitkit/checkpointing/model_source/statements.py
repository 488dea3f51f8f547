"""The top-level statements of a module: which names each one binds and uses."""

from __future__ import annotations

import ast
import importlib.util
import io
import linecache
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass
class Statement:
    """A statement at the top level of a module."""

    node: ast.stmt
    text: str  # its source, with decorators

    @cached_property
    def _table(self) -> symtable.SymbolTable:
        return symtable.symtable(self.text, "<statement>", "exec")

    @property
    def binds(self) -> set[str]:
        """Names that it defines in the module."""
        symbols = self._table.get_symbols()
        return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}

    @property
    def uses(self) -> list[str]:
        """Global and built-in names that it reads, functions inside it included."""
        return list(dict.fromkeys(_used_names(self._table, at_top=True)))

    @property
    def star_module(self) -> str | None:
        """The module of ``from module import *``, with leading dots."""
        node = self.node
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return _dotted(node)
        return None

    def imports(self) -> Iterator[tuple[str, str | None, str]]:
        """Each import in it: module with leading dots, imported name, name that this binds."""
        for node in ast.walk(self.node):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None, _bound_name(alias)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield _dotted(node), alias.name, alias.asname or alias.name

    def attribute_chains(self) -> Iterator[list[str]]:
        """Each ``a.b.c`` in it, as a list of its names."""
        for node in ast.walk(self.node):
            names: list[str] = []
            while isinstance(node, ast.Attribute):
                names.append(node.attr)
                node = node.value
            if names and isinstance(node, ast.Name):
                yield [node.id, *reversed(names)]

    @property
    def is_import(self) -> bool:
        """Whether it is only an import."""
        return isinstance(self.node, (ast.Import, ast.ImportFrom))

    @property
    def is_definition(self) -> bool:
        """Whether it defines a function or class, so that imports inside it may run later."""
        return isinstance(self.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))

    def text_binding(self, name: str, module: ModuleType) -> str:
        """Its source; of an import in ``module``, only what binds ``name``."""
        node = self.node
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            return self.text
        aliases = [alias for alias in node.names if _bound_name(alias) == name]
        if isinstance(node, ast.Import):
            return ast.unparse(ast.Import(aliases))
        return ast.unparse(ast.ImportFrom(absolute_module(module, _dotted(node)), aliases, 0))


def _dotted(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _used_names(table: symtable.SymbolTable, *, at_top: bool) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (at_top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _used_names(child, at_top=False)


def parse_statements(source: str) -> list[Statement]:
    """The statements of a source; none if it is not Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = io.StringIO(source).readlines()  # ast counts no other ends of lines
    return [
        Statement(node, "".join(lines[_first_line(node) - 1 : node.end_lineno]).rstrip())
        for node in tree.body
    ]


def _first_line(node: ast.stmt) -> int:
    """The line number of its first decorator, or its own."""
    first: int = min(part.lineno for part in (node, *getattr(node, "decorator_list", [])))
    return first


def module_source(module: ModuleType) -> str:
    """The source of a module's file; empty if it has none."""
    file = getattr(module, "__file__", None)
    is_readable = file is not None and Path(file).suffix in (".py", ".pyw", "")
    return "".join(linecache.getlines(str(file), vars(module))) if is_readable else ""


def notebook_source() -> str:
    """What was typed into a notebook or an interpreter, as far as Python remembers it."""
    cells = [name for name in linecache.cache if not Path(name).exists()]
    texts = ("".join(linecache.getlines(name)) for name in cells)
    return "\n".join(text for text in texts if parse_statements(text))


def absolute_module(module: ModuleType, dotted: str) -> str:
    """The full name of the module that ``module`` imports as ``dotted``."""
    package = getattr(module, "__package__", None) or ""
    return importlib.util.resolve_name(dotted, package) if dotted.startswith(".") else dotted


def _find_code(value: Any) -> Any:
    """The code object of a function, or of a method of a class, whose source is known."""
    members = vars(value).values() if isinstance(value, type) else [value]
    for member in members:
        function = getattr(member, "__func__", getattr(member, "fget", member))
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        if code is not None and linecache.getlines(code.co_filename):
            return code
    return None


def find_definition(value: Any) -> str | None:
    """The source of a function or class where it was compiled, without its indentation."""
    code = _find_code(value)
    if code is None:
        return None
    lines = linecache.getlines(code.co_filename)
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        return None
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and node.name == value.__name__:
            first = _first_line(node)
            if first <= code.co_firstlineno <= (node.end_lineno or 0):
                text = lines[first - 1 : node.end_lineno]
                indent = len(text[0]) - len(text[0].lstrip())
                return "".join(ln[indent:] if ln[:indent].isspace() else ln for ln in text)
    return None
