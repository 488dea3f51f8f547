"""Collect the source of a model: its classes, what they use of this program, and the imports."""

from __future__ import annotations

import builtins
import site
import sys
import sysconfig
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fitkit.checkpointing.model_source.statements import (
    Statement,
    absolute_module,
    find_definition,
    module_source,
    notebook_source,
    parse_statements,
)

HEADING = "# ---- module "
PACKAGE = " (package)"
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)


def model_source(module: nn.Module, arguments: Iterable[Any] = ()) -> str | None:
    """The source of a model's class and of this program's classes in it; warns if some is missing.

    Args:
        module: the model.
        arguments: values that it was built with; classes among them are needed to rebuild it.
    """
    parts = dict.fromkeys(type(part) for part in module.modules())
    arguments = [value for value in arguments if isinstance(value, type)]
    used = [cls for cls in (*parts, *arguments) if is_user_module(cls.__module__)]
    code, missing = collect_source(dict.fromkeys([type(module), *used]))
    if missing:
        problem = "is incomplete" if code else "will not be in checkpoints"
        warnings.warn(
            f"the source of {type(module).__name__} {problem}: {'; '.join(missing)}. Code that was "
            f"typed into an interpreter or made at run time has no source: put it into a file.",
            stacklevel=3,
        )
    return code


def collect_source(classes: Iterable[type]) -> tuple[str | None, list[str]]:
    """The source that defines ``classes`` again, as far as it can be found.

    For each module of this program it has, in their order, the statements that bind needed names.
    Installed libraries are imported as the program imports them.

    Returns:
        one text with a heading for each module, ``None`` if no class was found; and a message for
        each missing part.
    """
    classes = list(classes)
    own = [cls for cls in classes if is_user_module(cls.__module__)]
    collector = _Collector()
    for cls in own:
        collector.add_class(cls)
    if own:
        found = any(section.chosen for section in collector.sections.values())
        return (collector.text() if found else None), collector.missing
    texts = [find_definition(cls) for cls in classes[:1]]  # a library's class: only for reading
    missing = [f"the source of {cls.__name__} cannot be found" for cls in classes[:1]]
    return texts[0], ([] if texts[0] is not None else missing)


def is_user_module(name: str) -> bool:
    """Whether a module belongs to this program, not to an installed library."""
    if name.partition(".")[0] in (*sys.stdlib_module_names, "fitkit"):
        return name == "__main__"
    module = sys.modules.get(name)
    if module is None:
        return False
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if file is None:
        return getattr(module, "__spec__", None) is None
    path = Path(file).resolve()
    return not any(folder in path.parents for folder in _library_folders())


def _library_folders() -> list[Path]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(kind) for kind in kinds]
    return [Path(folder).resolve() for folder in (*folders, site.getusersitepackages())]


class _Section:
    """The statements chosen from one module."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.chosen: dict[tuple[int, str], str] = {}  # by position in the module

    @cached_property
    def statements(self) -> list[Statement]:
        return parse_statements(module_source(self.module))

    @cached_property
    def cells(self) -> list[Statement]:
        """Statements of a notebook, if the module has no file."""
        is_notebook = not self.statements and self.module.__name__ == "__main__"
        return parse_statements(notebook_source()) if is_notebook else []

    def text(self) -> str:
        future = [s.text for s in self.statements if s.text.startswith("from __future__ ")]
        ordered = [self.chosen[key] for key in sorted(self.chosen)]
        kind = PACKAGE if hasattr(self.module, "__path__") else ""
        texts = [f"{HEADING}{self.module.__name__}{kind}", *dict.fromkeys([*future, *ordered])]
        # blank lines around definitions, none between single lines
        return "\n".join(f"\n{text}\n" if "\n" in text else text for text in texts).rstrip()


class _Collector:
    """Sections by module, filled as names are needed."""

    def __init__(self) -> None:
        self.sections: dict[str, _Section] = {}
        self.missing: list[str] = []
        self._seen: set[tuple[str, str]] = set()

    def text(self) -> str:
        return "\n\n\n".join(section.text() for section in self.sections.values()) + "\n"

    def add_class(self, cls: type) -> None:
        """Add a class; one that was made in a function moves to the top level."""
        if "<locals>" not in cls.__qualname__:
            self._add_name(cls.__module__, cls.__qualname__.partition(".")[0])
            return
        text = find_definition(cls)
        if text is None:
            self.missing.append(f"the source of {cls.__qualname__} cannot be found")
            return
        section = self._section(cls.__module__)
        rename = f"{cls.__name__}.__qualname__ = {cls.__qualname__!r}"
        self._seen.add((cls.__module__, cls.__name__))
        for number, statement in enumerate(parse_statements(f"{text}\n{rename}")):
            self._add_statement(section, statement, cls.__name__, sys.maxsize - 1 + number)

    def _section(self, name: str) -> _Section:
        for end in range(len(name)):  # the packages that contain the module
            if name[end] == "." and name[:end] in sys.modules:
                self.sections.setdefault(name[:end], _Section(sys.modules[name[:end]]))
        return self.sections.setdefault(name, _Section(sys.modules[name]))

    def _add_name(self, module_name: str, name: str) -> None:
        """Add the statements that bind ``name`` in a module of this program, and what they use."""
        if (module_name, name) in self._seen:
            return
        self._seen.add((module_name, name))
        section = self._section(module_name)
        binding = [(n, s) for n, s in enumerate(section.statements) if name in s.binds]
        if not binding and not self._add_value(section, name):
            typed = [statement for statement in section.cells if name in statement.binds]
            if typed:
                self._add_statement(section, typed[-1], name)
            elif not hasattr(builtins, name) and not name.startswith("__"):
                self.missing.append(f"{name!r}, used in {module_name!r}, cannot be found")
        for position, statement in binding:
            self._add_statement(section, statement, name, position)

    def _add_statement(
        self, section: _Section, statement: Statement, name: str, position: int | None = None
    ) -> None:
        """Add a statement that binds ``name``, and what it uses; by default it comes last."""
        for dotted, imported, bound in statement.imports():
            if bound == name or not statement.is_import:
                self._follow_import(section, dotted, imported, late=statement.is_definition)
        for used in statement.uses:
            self._add_name(section.module.__name__, used)
        for chain in statement.attribute_chains():
            self._follow_chain(section, chain)
        text = statement.text_binding(name, section.module)
        section.chosen[(len(section.chosen) if position is None else position, text)] = text

    def _follow_import(
        self, section: _Section, dotted: str, imported: str | None, *, late: bool
    ) -> None:
        """Add what is imported from a module of this program."""
        target = absolute_module(section.module, dotted)
        if not is_user_module(target.partition(".")[0]):
            return
        if late:
            self.missing.append(
                f"{target!r} is imported inside a function of {section.module.__name__!r}, where "
                f"rebuilt code cannot find it: import it at the top"
            )
        if target not in sys.modules:
            return
        self._section(target)
        namespace = vars(sys.modules[target])
        if imported in namespace and not isinstance(namespace[imported], ModuleType):
            self._add_name(target, imported)
            return
        submodule = target if imported is None else f"{target}.{imported}"
        if submodule in sys.modules:
            self._section(submodule)

    def _follow_chain(self, section: _Section, chain: list[str]) -> None:
        """Add what is used as an attribute of a module of this program."""
        value: Any = vars(section.module).get(chain[0])
        for attribute in chain[1:]:
            if not isinstance(value, ModuleType) or not is_user_module(value.__name__):
                return
            inner = vars(value).get(attribute)
            if isinstance(inner, ModuleType) and is_user_module(inner.__name__):
                self._section(inner.__name__)
            elif attribute in vars(value):
                self._add_name(value.__name__, attribute)
            value = inner

    def _add_value(self, section: _Section, name: str) -> bool:
        """Add ``name`` by its value, where no statement of a file binds it; return if it did."""
        for statement in reversed(section.statements):
            star = statement.star_module and absolute_module(section.module, statement.star_module)
            if star and name in vars(sys.modules.get(star, ModuleType(star))):
                section.chosen[(-1, name)] = f"from {star} import {name}"
                if is_user_module(star):
                    self._add_name(star, name)
                return True
        if section.statements or name not in vars(section.module):
            return False
        value = vars(section.module)[name]
        is_own = getattr(value, "__module__", None) == section.module.__name__
        text = (find_definition(value) if is_own else None) or _assignment(name, value)
        for statement in parse_statements(text or ""):
            self._add_statement(section, statement, name, None if is_own else -1)
        return text is not None


def _assignment(name: str, value: Any) -> str | None:
    """A statement that binds ``name`` to a module, to something importable, or to a constant."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", ".")
    if module in sys.modules and vars(sys.modules[module]).get(qualname) is value:
        return f"from {module} import {qualname} as {name}" if module != "__main__" else None
    return f"{name} = {value!r}" if type(value) in _CONSTANTS else None
