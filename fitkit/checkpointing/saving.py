"""Writing a handler's state: one file, or one file for each part."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.checkpointing import checkpoint, files, schema, skeleton
from fitkit.checkpointing.plain import to_plain
from fitkit.core.errors import CheckpointError, did_you_mean, listed
from fitkit.runtime.pieces import is_piece

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

DEFAULT_PARTS = ("model_state_dict", "optimizer_state_dict", "model_kwargs")


def save_single_file(nn_handler: NNHandler, state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` to one file; on return it is whole and durable.

    Args:
        nn_handler: its logger is told of success and failure.
        state: what ``handler.get_state_dict()`` returns, or a part of it; not changed.
        path: the file; its folder is made.

    Raises:
        SaveError: it could not be written; an earlier file of that name is as it was.
        CheckpointError: the state holds something that a checkpoint cannot hold.
    """
    _write(nn_handler, dict(state), Path(path))


def save_multi_files(
    nn_handler: NNHandler,
    state: Mapping[str, Any],
    path: str | Path,
    keys_to_save: Sequence[str] | None = None,
) -> None:
    """Write parts of ``state`` to files of their own: ``model.pth`` gives ``model_<key>.pth``.

    The ``seed``, and the SDE as ``sde_class`` and ``sde_kwargs``, go into the saved
    ``model_kwargs``; ``state`` itself is not changed.

    Args:
        nn_handler: its logger is told of success and failure.
        state: what ``handler.get_state_dict()`` returns.
        path: the base path.
        keys_to_save: keys of ``state``; by default model, optimizer and the model's arguments.

    Raises:
        CheckpointError: a key is not in ``state``; nothing was written.
        SaveError: a file could not be written.
    """
    for part_path, content in _parts(state, Path(path), keys_to_save).items():
        _write(nn_handler, content, part_path)


def save_multi_from_single(path: str | Path, keys_to_save: Sequence[str] | None = None) -> None:
    """Write parts of the checkpoint ``path`` to files of their own, next to it.

    Args:
        path: a checkpoint; it stays as it is.
        keys_to_save: as for ``save_multi_files``.

    Raises:
        CheckpointError: the file cannot be used, or a key is not in it; nothing was written.
        SaveError: a file could not be written.
    """
    state = checkpoint.read(Path(path), mmap=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(state).__name__}, not named parts.")
    for part_path, content in _parts(state, Path(path), keys_to_save).items():
        files.write(content, part_path)


def part_path(path: Path, key: str) -> Path:
    """The file of one part: ``model.pth`` and ``history`` give ``model_history.pth``.

    Raises:
        CheckpointError: the key is no part of a file name.

    >>> part_path(Path("runs/model.pth"), "history").as_posix()
    'runs/model_history.pth'
    """
    if re.search(r"[/\\\\\x00]", key):
        raise CheckpointError(f"a part called {key!r} cannot be a file of its own: leave it out.")
    return path.with_name(f"{path.stem}_{key}{path.suffix or '.pth'}")


def merge_parts(path: str | Path) -> dict[str, Any]:
    """The state that was split into files of its parts: what a single file would hold.

    Args:
        path: the base path, as ``save_multi_files`` was given it; there need be no such file.

    Raises:
        CheckpointError: a part is missing or cannot be used, or they are no checkpoint together.
    """
    paths = {key: part_path(Path(path), key) for key in schema.KEYS}
    missing = [key for key, one in paths.items() if not one.exists()]
    if missing:
        raise CheckpointError(
            f"a whole checkpoint needs all its parts; of {str(path)!r} are missing "
            f"{listed(missing)}: there is no {str(paths[missing[0]])!r}, for one. Split the "
            f"original with all its keys."
        )
    state = {key: checkpoint.read(one, mmap=True) for key, one in paths.items()}
    if isinstance(state["model_kwargs"], dict):  # without what splitting added
        added = {"seed": state["seed"], "sde_class": state["sde"], "sde_kwargs": state["sde"]}
        state["model_kwargs"] = {
            name: value for name, value in state["model_kwargs"].items() if added.get(name) is None
        }
    return schema.validate(state, path)


def _write(nn_handler: NNHandler, content: Any, path: Path) -> None:
    with logged(nn_handler.logger, path):
        if skeleton.take_out(content, is_piece)[1]:
            raise CheckpointError(
                "a state of a sharded model has only this process's part of the tensors: call "
                "handler.save(path) on every process instead."
            )
        files.write(to_plain(content), path)


@contextmanager
def logged(logger: logging.Logger, path: str | Path) -> Iterator[None]:
    """Inside ``with`` a file is written; the log tells how it went."""
    try:
        yield
    except CheckpointError as error:
        logger.error("%s", error)
        raise
    logger.info("saved %s", path)


def _parts(
    state: Mapping[str, Any], path: Path, keys_to_save: Sequence[str] | None
) -> dict[Path, Any]:
    keys = list(DEFAULT_PARTS if keys_to_save is None else keys_to_save)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f"the state has no {listed(missing)}; it has {listed(state)}."
            + did_you_mean(missing[0], state)
        )
    return {part_path(path, key): _part(state, key) for key in keys}


def _part(state: Mapping[str, Any], key: str) -> Any:
    if key != "model_kwargs" or not isinstance(state[key], Mapping):
        return state[key]
    kwargs = dict(state[key])
    sde = state.get("sde")
    named = {}
    if isinstance(sde, Mapping):
        named = {"sde_class": sde.get("class"), "sde_kwargs": sde.get("kwargs")}
    for name in ("seed", "sde_class", "sde_kwargs"):
        value = named.get(name, state.get(name))
        if value is not None:
            kwargs[name] = value
    return kwargs
