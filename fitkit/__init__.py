"""fitkit: callback-first training for PyTorch, with exact resume.

>>> import fitkit
>>> fitkit.NNHandler.__name__
'NNHandler'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fitkit.core.pause_gc import pause_gc
from fitkit.version import __version__ as __version__

if TYPE_CHECKING:
    from fitkit.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import the public names when the first one is used (PEP 562).

    So that what needs no torch, as ``fitkit ls``, does not wait for it.
    """
    if name == "__all__" or not name.startswith("_"):
        with pause_gc():  # it would look at all objects of torch, as long as the import takes
            api = import_module("fitkit.api")
        globals().update({name: getattr(api, name) for name in (*api.__all__, "__all__")})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'fitkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("fitkit.api").__all__})
