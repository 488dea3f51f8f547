"""Import the model source in a checkpoint, for users who trust it."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

from fitkit.checkpointing.model_source.collect import HEADING, PACKAGE
from fitkit.core.errors import CheckpointError


@contextmanager
def import_stored_source(code: str) -> Iterator[None]:
    """Import the modules that ``collect_source`` stored in ``code``.

    Inside ``with`` they are in ``sys.modules``, in place of the program's of the same names. Raises
    ``CheckpointError`` if ``code`` is of another form, or raises an error itself.
    """
    finder = _SourceFinder(_split_modules(code))
    names = list(finder.sources)
    replaced = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.meta_path.insert(0, finder)
    try:
        for name in names:
            _import(name)
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(replaced)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise CheckpointError(
            f"the model's source in the checkpoint cannot be run: in module {name!r}, "
            f"{type(error).__name__}: {error}. Install what it imports, or pass model_class=."
        ) from error


def _split_modules(code: str) -> dict[str, str]:
    """The source of each module by the text of its heading: a name, and whether a package."""
    sources: dict[str, list[str]] = {}
    for line in io.StringIO(code):
        if line.startswith(HEADING):
            lines = sources.setdefault(line.removeprefix(HEADING).strip(), [])
        elif sources:
            lines.append(line)
    if not sources:
        raise CheckpointError(
            "the model's source in the checkpoint is that of a library, or of another program: "
            "import the model's class first, or pass model_class=."
        )
    return {name: "".join(lines) for name, lines in sources.items()}


class _SourceFinder(MetaPathFinder, ExecutionLoader):
    """Finds and loads modules from their source."""

    def __init__(self, headed: Mapping[str, str]) -> None:
        self.sources = {name.removesuffix(PACKAGE): text for name, text in headed.items()}
        self._packages = {name.removesuffix(PACKAGE) for name in headed if name.endswith(PACKAGE)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, if its source is stored."""
        return spec_from_loader(fullname, self) if fullname in self.sources else None

    def is_package(self, fullname: str) -> bool:
        """Whether it was a package."""
        return fullname in self._packages

    def get_source(self, fullname: str) -> str:
        """The source; tracebacks show it too."""
        return self.sources[fullname]

    def get_filename(self, fullname: str) -> str:
        """A name for tracebacks; there is no such file."""
        return f"model_code/{fullname.replace('.', '/')}.py"
