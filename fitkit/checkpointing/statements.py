"""The top-level statements of a module: what each binds and what it uses."""

from __future__ import annotations

import ast
import importlib.util
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
    """One statement at the top level of a module.

    Attributes:
        node: its syntax.
        text: its source, with decorators.
    """

    node: ast.stmt
    text: str

    @cached_property
    def _table(self) -> symtable.SymbolTable:
        return symtable.symtable(self.text, "<statement>", "exec")

    @property
    def binds(self) -> set[str]:
        """Names that the module has by it."""
        symbols = self._table.get_symbols()
        return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}

    @property
    def uses(self) -> list[str]:
        """Names of the module, or built-in ones, that it reads, in any depth."""
        return list(dict.fromkeys(_used(self._table, at_top=True)))

    @property
    def star(self) -> str | None:
        """The module of ``from module import *``, with its dots."""
        node = self.node
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return "." * node.level + (node.module or "")
        return None

    def imports(self) -> Iterator[tuple[str, str | None, str]]:
        """Each import in it: the module with its dots, the name taken from it, what that binds."""
        for node in ast.walk(self.node):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None, alias.asname or alias.name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    yield module, alias.name, alias.asname or alias.name

    def chains(self) -> Iterator[list[str]]:
        """Each ``a.b.c`` in it as its names."""
        for node in ast.walk(self.node):
            names: list[str] = []
            while isinstance(node, ast.Attribute):
                names.append(node.attr)
                node = node.value
            if names and isinstance(node, ast.Name):
                yield [node.id, *reversed(names)]

    @property
    def is_import(self) -> bool:
        """Whether it does nothing but import."""
        return isinstance(self.node, (ast.Import, ast.ImportFrom))

    @property
    def runs_later(self) -> bool:
        """Whether what it imports is imported when it is called, not when it is defined."""
        return isinstance(self.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))

    def only(self, name: str, module: ModuleType) -> str:
        """Its source; of an import in ``module``, only what binds ``name``."""
        node = self.node
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            return self.text
        kept = [a for a in node.names if (a.asname or a.name.partition(".")[0]) == name]
        if isinstance(node, ast.Import):
            return ast.unparse(ast.Import(kept))
        dotted = absolute(module, "." * node.level + (node.module or ""))
        return ast.unparse(ast.ImportFrom(dotted, kept, 0))


def _used(table: symtable.SymbolTable, *, at_top: bool) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (at_top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _used(child, at_top=False)


def statements_of(source: str) -> list[Statement]:
    """The statements of a source; none if it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = source.splitlines(keepends=True)
    found = []
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        text = "".join(lines[first - 1 : node.end_lineno]).rstrip()
        found.append(Statement(node, text))
    return found


def source_of_module(module: ModuleType) -> str:
    """The source of a module's file; empty if it has none."""
    file = getattr(module, "__file__", None)
    is_readable = file is not None and Path(file).suffix in (".py", ".pyw", "")
    return "".join(linecache.getlines(str(file), vars(module))) if is_readable else ""


def source_of_cells() -> str:
    """What was typed into a notebook or a newer interpreter, as far as Python remembers it."""
    cells = [name for name in linecache.cache if not Path(name).exists()]
    texts = ("".join(linecache.getlines(name)) for name in cells)
    return "\n".join(text for text in texts if statements_of(text))


def absolute(module: ModuleType, dotted: str) -> str:
    """The full name of a module that ``module`` imports as ``dotted``."""
    package = getattr(module, "__package__", None) or ""
    return importlib.util.resolve_name(dotted, package) if dotted.startswith(".") else dotted


def code_of(value: Any) -> Any:
    """The code object of a function, or of a method of a class that has a source; or ``None``."""
    own = vars(value).values() if isinstance(value, type) else [value]
    for member in own:
        function = getattr(member, "__func__", getattr(member, "fget", member))
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        if code is not None and linecache.getlines(code.co_filename):
            return code
    return None


def definition_of(value: Any) -> str | None:
    """The source of a function or class where its code was compiled, moved to the left margin."""
    code = code_of(value)
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
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first <= code.co_firstlineno <= (node.end_lineno or 0):
                kept = lines[first - 1 : node.end_lineno]
                margin = len(kept[0]) - len(kept[0].lstrip())
                return "".join(line[margin:] if line[:margin].isspace() else line for line in kept)
    return None
