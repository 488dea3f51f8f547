"""Names of checkpoint files: fills in placeholders and keeps files inside their folder."""

from __future__ import annotations

import glob
import re
import string
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fitkit.core.errors import CheckpointError, ConfigurationError, listed

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes that file systems take
_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*\\/]')


def placeholders(template: str) -> list[str]:
    """The names in braces of a template.

    Raises:
        ConfigurationError: the template is no valid format string, or reaches into values.

    >>> placeholders("model_{epoch:02d}_{val_loss:.3f}.pth")
    ['epoch', 'val_loss']
    """
    try:
        names = list(_fields(template))
    except ValueError as error:
        raise ConfigurationError(
            f"the file name {template!r} is not a valid format string ({error}): write "
            f"placeholders as {{epoch:02d}} or {{val_loss:.4f}}."
        ) from error
    for name in names:
        if not name.isidentifier():
            raise ConfigurationError(
                f"the placeholder {name!r} in {template!r} must be a plain name such as 'epoch' or "
                f"a logged value."
            )
    return names


def checked_path(filepath: Any) -> str:
    """A path with placeholders as text.

    Raises:
        ConfigurationError: it is not a path, or as ``placeholders``.
    """
    if not isinstance(filepath, (str, Path)) or not str(filepath):
        raise ConfigurationError(
            f"filepath must be a path such as 'runs/{{epoch:03d}}.pth', received {filepath!r}."
        )
    placeholders(str(filepath))
    return str(filepath)


def _fields(template: str) -> Iterator[str]:
    """The names in braces, also those inside a format: ``{loss:{width}}``."""
    for _, field, specification, _ in string.Formatter().parse(template):
        if field is not None:
            yield field
            yield from _fields(specification or "")


def format_name(template: str, values: Mapping[str, Any], fallback_suffix: str) -> str:
    """The template with its placeholders filled in.

    If a value is missing or does not fit its format, a warning lists the available names, and
    the result is the text before the first placeholder with ``fallback_suffix``.

    >>> format_name("m_{epoch:03d}.pth", {"epoch": 7}, "_epoch7")
    'm_007.pth'
    """
    names = placeholders(template)
    missing = sorted({name for name in names if name not in values})
    try:
        if not missing:
            return template.format(**{name: values[name] for name in names})
        problem = f"has no value for {listed(missing)}"
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        problem = f"cannot be filled in ({error})"
    name = fallback_name(template, fallback_suffix)
    warnings.warn(
        f"the checkpoint name {template!r} {problem}; available are {listed(values)}. Saving as "
        f"{name!r} instead.",
        RuntimeWarning,
        stacklevel=2,
    )
    return name


def fallback_name(template: str, suffix: str) -> str:
    """A simpler name: the text before the first placeholder, then ``suffix``.

    >>> fallback_name("runs/model_epoch{epoch}_{val_loss:.2f}.pth", "_epoch3")
    'runs/model_epoch3.pth'
    """
    folder, slash, base = template.rpartition("/")
    if "{" in folder:
        folder, slash, _ = folder.split("{")[0].rpartition("/")
    extension = _split_extension(base.rpartition("}")[2])[1] or ".pth"
    head = base.removesuffix(extension).split("{")[0].rstrip("_-. ")
    head = re.sub(r"[_\-. ]*epoch$", "", head)
    return f"{folder}{slash}{head or 'checkpoint'}{suffix}{extension}"


def version(path: Path, number: int) -> Path:
    """Another name for a file whose own is taken.

    >>> version(Path("runs/m_0.95.pth"), 2).as_posix()
    'runs/m_0.95-v2.pth'
    """
    head, extension = _split_extension(path.name)
    return path.with_name(f"{head}-v{number}{extension}")


def is_version(name: str | None, original: str) -> bool:
    """Whether ``name`` is ``original``, or what ``version`` makes of it.

    >>> is_version("a/m-v12.pth", "a/m.pth"), is_version("a/m-v.pth", "a/m.pth")
    (True, False)
    """
    head, extension = _split_extension(original)
    pattern = rf"{re.escape(head)}(-v\d+)?{re.escape(extension)}"
    return name is not None and re.fullmatch(pattern, name) is not None


def _split_extension(name: str) -> tuple[str, str]:
    tail = re.search(r"\.[A-Za-z]\w*$", name)
    extension = tail.group() if tail else ""
    return name.removesuffix(extension), extension


def folders_below(folder: Path, template: str) -> list[Path]:
    """``folder``, and the folders in it that exist for files named by ``template``."""
    parents = template.rpartition("/")[0]
    if not parents:
        return [folder]
    pattern = "".join(
        glob.escape(text) + ("" if field is None else "*")
        for text, field, _, _ in string.Formatter().parse(parents)
    )
    return [folder, *sorted(path for path in folder.glob(pattern) if path.is_dir())]


def clean_name(name: str) -> str:
    """A relative name inside its folder: without roots, ``..`` and unsafe characters.

    >>> clean_name("../../etc/pass:wd"), clean_name("a/b.pth")
    ('etc/pass_wd', 'a/b.pth')
    """
    parts = [_UNSAFE.sub("_", part).strip() for part in name.replace("\\", "/").split("/")]
    kept = [part for part in parts if part.strip(". ")]
    return "/".join(kept) or "checkpoint"


def with_extension(name: str, extension: str = ".pth") -> str:
    """The name with the extension appended if it does not end with it."""
    return name if name.endswith(extension) else f"{name}{extension}"


def require_inside(names: Iterable[Any], callback_name: str) -> None:
    """Check that each file name in the saved state of a callback stays in its folder.

    Raises:
        CheckpointError: one does not. Files of these names would be written and deleted.
    """
    for name in names:
        if not _is_inside(name):
            raise CheckpointError(
                f"the saved state of callback {callback_name!r} names the file {name!r}, which is "
                f"outside its folder: the checkpoint was altered, use another."
            )


def _is_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    too_long = any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in path.parts)
    leads_out = path.is_absolute() or ".." in path.parts or bool(Path(name).drive)
    return not too_long and not leads_out and len(name) < _LONGEST_PATH
