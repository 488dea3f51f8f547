"""The source of a model: its classes, what of this program they use, and the imports that takes."""

from __future__ import annotations

import builtins
import site
import sys
import sysconfig
import types
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from fitkit.checkpointing.statements import (
    Statement,
    absolute,
    definition_of,
    source_of_cells,
    source_of_module,
    statements_of,
)

HEADING = "# ---- module "
PACKAGE = " (package)"
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def source_of(classes: Iterable[type]) -> tuple[str | None, list[str]]:
    """What it takes to define ``classes`` again, as far as it can be found.

    Of each module of this program it has the statements that bind what is needed, in their order;
    installed libraries are imported as the program does.

    Returns:
        one text with a heading for each module, ``None`` if no class was found; and sentences about
        what is missing.
    """
    wanted = list(classes)
    own = [cls for cls in wanted if is_own(cls.__module__)]
    collected = _Collected()
    for cls in own:
        collected.need_class(cls)
    if own:
        found = any(section.chosen for section in collected.sections.values())
        return (collected.text() if found else None), collected.missing
    texts = [definition_of(cls) for cls in wanted[:1]]  # of a library: for reading
    missing = [f"the source of {cls.__name__} cannot be found" for cls in wanted[:1]]
    return texts[0], ([] if texts[0] is not None else missing)


def is_own(name: str) -> bool:
    """Whether a module is this program's, not an installed library's."""
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
    """What is taken of one module."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.chosen: dict[tuple[int, str], str] = {}

    @cached_property
    def statements(self) -> list[Statement]:
        return statements_of(source_of_module(self.module))

    @cached_property
    def cells(self) -> list[Statement]:
        """Statements of a notebook, where the module has no file."""
        is_typed = not self.statements and self.module.__name__ == "__main__"
        return statements_of(source_of_cells()) if is_typed else []

    def text(self) -> str:
        future = [s.text for s in self.statements if s.text.startswith("from __future__ ")]
        ordered = [self.chosen[key] for key in sorted(self.chosen)]
        kind = PACKAGE if hasattr(self.module, "__path__") else ""
        heading = f"{HEADING}{self.module.__name__}{kind}"
        texts = [heading, *dict.fromkeys([*future, *ordered])]
        # lines together, blocks apart
        spaced = (f"\n{text}\n" if "\n" in text else text for text in texts)
        return "\n".join(spaced).rstrip()


class _Collected:
    """Sections by module, filled as names are needed."""

    def __init__(self) -> None:
        self.sections: dict[str, _Section] = {}
        self.missing: list[str] = []
        self._seen: set[tuple[str, str]] = set()

    def text(self) -> str:
        return "\n\n\n".join(section.text() for section in self.sections.values()) + "\n"

    def need_class(self, cls: type) -> None:
        """Take a class; one that was made in a function is moved to the top level."""
        if "<locals>" not in cls.__qualname__:
            self.need(cls.__module__, cls.__qualname__.partition(".")[0])
            return
        text = definition_of(cls)
        if text is None:
            self.missing.append(f"the source of {cls.__qualname__} cannot be found")
            return
        section = self._section(cls.__module__)
        renamed = f"{cls.__name__}.__qualname__ = {cls.__qualname__!r}"
        self._seen.add((cls.__module__, cls.__name__))
        for number, statement in enumerate(statements_of(f"{text}\n{renamed}")):
            self._take(section, statement, cls.__name__, sys.maxsize - 1 + number)

    def _section(self, name: str) -> _Section:
        for end in range(len(name)):  # the packages that it is in
            if name[end] == "." and name[:end] in sys.modules:
                self.sections.setdefault(name[:end], _Section(sys.modules[name[:end]]))
        return self.sections.setdefault(name, _Section(sys.modules[name]))

    def need(self, module_name: str, name: str) -> None:
        """Take what binds ``name`` in a module of this program, and what that uses."""
        if (module_name, name) in self._seen:
            return
        self._seen.add((module_name, name))
        section = self._section(module_name)
        binding = [(n, s) for n, s in enumerate(section.statements) if name in s.binds]
        if not binding and not self._found_by_value(section, name):
            typed = [statement for statement in section.cells if name in statement.binds]
            if typed:
                self._take(section, typed[-1], name)
            elif not hasattr(builtins, name) and not name.startswith("__"):
                self.missing.append(f"{name!r}, used in {module_name!r}, cannot be found")
        for place, statement in binding:
            self._take(section, statement, name, place)

    def _take(
        self, section: _Section, statement: Statement, name: str, place: int | None = None
    ) -> None:
        """Take a statement that binds ``name``; without a place it comes after what it uses."""
        for dotted, taken, bound in statement.imports():
            if bound == name or not statement.is_import:
                self._follow_import(section, dotted, taken, late=statement.runs_later)
        for used in statement.uses:
            self.need(section.module.__name__, used)
        for chain in statement.chains():
            self._follow_chain(section, chain)
        text = statement.only(name, section.module)
        section.chosen[(len(section.chosen) if place is None else place, text)] = text

    def _follow_import(
        self, section: _Section, dotted: str, taken: str | None, *, late: bool
    ) -> None:
        """Take what a module of this program is imported for."""
        target = absolute(section.module, dotted)
        if not is_own(target.partition(".")[0]):
            return
        if late:
            self.missing.append(
                f"{target!r} is imported inside a function of {section.module.__name__!r}, where "
                f"rebuilt code cannot find it: import it at the top"
            )
        if target not in sys.modules:
            return
        self._section(target)
        offered = vars(sys.modules[target])
        if taken in offered and not isinstance(offered[taken], types.ModuleType):
            self.need(target, taken)
            return
        inner = target if taken is None else f"{target}.{taken}"
        if inner in sys.modules:
            self._section(inner)

    def _follow_chain(self, section: _Section, chain: list[str]) -> None:
        """Take what is reached as an attribute of a module of this program."""
        value: Any = vars(section.module).get(chain[0])
        for attribute in chain[1:]:
            if not isinstance(value, types.ModuleType) or not is_own(value.__name__):
                return
            inner = vars(value).get(attribute)
            if isinstance(inner, types.ModuleType) and is_own(inner.__name__):
                self._section(inner.__name__)
            elif attribute in vars(value):
                self.need(value.__name__, attribute)
            value = inner

    def _found_by_value(self, section: _Section, name: str) -> bool:
        """Take ``name`` by what it stands for, where no statement of a file binds it."""
        for statement in reversed(section.statements):
            star = statement.star and absolute(section.module, statement.star)
            if star and name in vars(sys.modules.get(star, types.ModuleType(star))):
                section.chosen[(-1, name)] = f"from {star} import {name}"
                if is_own(star):
                    self.need(star, name)
                return True
        if section.statements or name not in vars(section.module):
            return False
        value = vars(section.module)[name]
        is_here = getattr(value, "__module__", None) == section.module.__name__
        text = (definition_of(value) if is_here else None) or _as_statement(name, value)
        for statement in statements_of(text or ""):
            self._take(section, statement, name, None if is_here else -1)
        return text is not None


def _as_statement(name: str, value: Any) -> str | None:
    """A statement that binds ``name`` to a module, to something importable, or to a constant."""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}"
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", ".")
    if module in sys.modules and vars(sys.modules[module]).get(qualname) is value:
        return f"from {module} import {qualname} as {name}" if module != "__main__" else None
    return f"{name} = {value!r}" if type(value) in _PLAIN else None
