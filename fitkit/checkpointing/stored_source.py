"""Running the source in a checkpoint, for those who trust it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

from fitkit.checkpointing.source import HEADING, PACKAGE
from fitkit.core.errors import CheckpointError


@contextmanager
def running(code: str) -> Iterator[None]:
    """Inside ``with`` the modules of ``code``, just run, are those that the program has imported.

    They are new modules, and the program's own come back afterwards.

    Args:
        code: what ``source_of`` returned.

    Raises:
        CheckpointError: it is of another form, or raises an error itself.
    """
    stored = _Stored(_split(code))
    names = list(stored.texts)
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.meta_path.insert(0, stored)
    try:
        for name in names:
            _run(name)
        yield
    finally:
        sys.meta_path.remove(stored)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _run(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise CheckpointError(
            f"the model's source in the checkpoint cannot be run: in module {name!r}, "
            f"{type(error).__name__}: {error}. Install what it imports, or pass model_class=."
        ) from error


def _split(code: str) -> dict[str, str]:
    """The text of each module, by the module's name, with the mark of a package."""
    texts: dict[str, list[str]] = {}
    name = None
    for line in code.splitlines(keepends=True):
        if line.startswith(HEADING):
            name = line.removeprefix(HEADING).strip()
            texts[name] = []
        elif name is not None:
            texts[name].append(line)
    if not texts:
        raise CheckpointError(
            "the model's source in the checkpoint is that of a library, or of another program: "
            "import the model's class first, or pass model_class=."
        )
    return {name: "".join(lines) for name, lines in texts.items()}


class _Stored(MetaPathFinder, ExecutionLoader):
    """Finds and loads modules from their texts."""

    def __init__(self, marked: Mapping[str, str]) -> None:
        self.texts = {name.removesuffix(PACKAGE): text for name, text in marked.items()}
        self._packages = {name.removesuffix(PACKAGE) for name in marked if name.endswith(PACKAGE)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, if there is a text for it."""
        return spec_from_loader(fullname, self) if fullname in self.texts else None

    def is_package(self, fullname: str) -> bool:
        """Whether it was a package."""
        return fullname in self._packages

    def get_source(self, fullname: str) -> str:
        """The text; tracebacks show it too."""
        return self.texts[fullname]

    def get_filename(self, fullname: str) -> str:
        """A name for tracebacks; there is no such file."""
        return f"model_code/{fullname.replace('.', '/')}.py"
