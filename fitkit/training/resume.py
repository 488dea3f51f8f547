"""``fit(resume=...)``: find the checkpoint to continue from, and load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import run_record
from fitkit.checkpointing.storage.is_checkpoint import CHECKPOINT_SUFFIXES
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    add_note,
    listed,
)
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.set_and_load import drop_missing_scheduler
from fitkit.handler.state_dict import handler_state_dict, load_handler_state_dict
from fitkit.training.finished_call import restore_finished_call
from fitkit.training.options import FitOptions
from fitkit.training.resume_report import shown_path
from fitkit.training.run_config import require_same_run


@dataclass(frozen=True)
class Resumed:
    """What ``resume=`` led to.

    Attributes:
        continues: this call of ``fit`` continues an interrupted one.
        is_finished: this call was finished before the program was restarted: a later one had begun.
        source: what was loaded, in words; ``None``: nothing, training begins anew.
        config: the configuration with which it was saved.
    """

    continues: bool = False
    is_finished: bool = False
    source: str | None = None
    config: Mapping[str, Any] | None = None


def interrupted_call(handler: BaseHandler, options: FitOptions) -> dict[str, Any] | None:
    """The state of a call that was interrupted in this process, if ``resume=`` may continue it."""
    if not (options.resume and handler.session.call_is_open):
        return None
    return handler_state_dict(handler)


def resume(
    handler: BaseHandler,
    options: FitOptions,
    config: Mapping[str, Any],
    in_memory: dict[str, Any] | None,
) -> Resumed:
    """Load the checkpoint that ``resume`` means.

    Args:
        handler: the handler that begins a call of ``fit``.
        options: the arguments of the call.
        config: its configuration.
        in_memory: the state of a call that was interrupted in this process; it is continued if no
            checkpoint of it is found.

    Raises:
        CheckpointError: the file cannot be used.
        ConfigurationError: it is of a run with another seed or other data.
    """
    this_call = handler.session.number_of_call(handler.state)
    found, is_explicit = _find_checkpoint(handler, options.resume)
    path, saved = found.path, found.state
    if path is None and in_memory is None:
        if options.resume:
            handler.saves.files.adopt_killed_start(found.weights_only)
        return Resumed()
    if path is None:
        saved, source = in_memory or {}, "the interrupted call in memory"
    else:
        source = shown_path(path)
    call = saved["progress"]["state"]["call"]
    saved_config = saved.get("config") or {}
    if not is_explicit and call < this_call:
        return Resumed()
    if path is not None and not is_explicit and call > this_call:
        source = restore_finished_call(handler, found, this_call, _folders(handler, options.resume))
        handler.run_identity.adopt(run_record.read(path))
        return Resumed(is_finished=True, source=source)
    if not is_explicit:
        require_same_run(saved_config, config, source)
    try:
        load_handler_state_dict(handler, saved)
        drop_missing_scheduler(handler)
    except BaseException as error:
        add_note(error, f"raised while fit resumed from {source!r}")
        raise
    if saved["progress"]["state"]["mid_step"]:
        warnings.warn(
            f"{source!r} was saved in the middle of a training step: the run goes on with the "
            f"step's batch, but not bit for bit as it would have.",
            stacklevel=2,
        )
    if handler.state.stopping and not handler.state.stop_is_final:
        handler.state.clear_stop()
    if path is not None:
        handler.run_identity.adopt(run_record.read(path))
        handler.saves.protected = path.resolve()
    return Resumed(continues=True, source=source, config=saved_config)


def _find_checkpoint(handler: BaseHandler, resume: Any) -> tuple[latest.LatestCheckpoint, bool]:
    """The file to resume from, and whether the user named the file itself."""
    if resume is None or resume is False:
        return latest.LatestCheckpoint(), False
    folders = _folders(handler, resume)
    if folders is not None:
        return _newest(handler, folders), False
    path = Path(resume)
    if not path.exists():
        raise CheckpointNotFoundError(
            f"resume={str(resume)!r}: there is no such file. Pass a folder to start anew where it "
            f"holds no checkpoint."
        )
    saved = latest.read_full(path, handler.parallel.empty_dtensor)
    _require_same_position(handler, schema.run_position(saved))
    return latest.LatestCheckpoint(path, saved), True


def _folders(handler: BaseHandler, resume: Any) -> list[Path] | None:
    """The folders that ``resume`` means; ``None`` if it names a file.

    Raises:
        ConfigurationError: ``resume`` is of another type, or is ``True`` without a saver.
    """
    savers = [callback for callback in handler.callbacks if isinstance(callback, Saver)]
    folders = [folder for saver in savers for folder in saver.folders]
    if resume is True:
        if not savers:
            raise ConfigurationError(
                "resume=True looks where this fit's savers write, but none is attached: call "
                "auto_save, add a ModelCheckpoint, or pass the folder or file to resume from."
            )
        return folders
    if not isinstance(resume, (str, Path)):
        raise ConfigurationError(
            f"resume must be a file, a folder, True or None, received {resume!r}."
        )
    path = Path(resume)
    if path.is_dir() or (not path.exists() and path.suffix not in CHECKPOINT_SUFFIXES):
        below = [folder for folder in folders if path.resolve() in folder.resolve().parents]
        return [path, *below]
    return None


def _newest(handler: BaseHandler, folders: list[Path]) -> latest.LatestCheckpoint:
    found = latest.find_latest(folders, handler.parallel.empty_dtensor, handler.world)
    if not handler.world.is_main:  # the warnings would be the same
        return found
    for sentence in found.skipped:
        warnings.warn(f"passed over while looking for a checkpoint: {sentence}", stacklevel=2)
    if found.path is None and found.weights_only:
        warnings.warn(
            f"resume= found no whole checkpoint, only weights: "
            f"{listed(shown_path(path) for path in found.weights_only)}. Training begins anew and "
            f"replaces them. To be able to resume, add a saver with save_weights_only=False; to "
            f"start from these weights, use NNHandler.initialize_from_checkpoint.",
            stacklevel=2,
        )
    return found


def _require_same_position(handler: BaseHandler, position: tuple[int, ...]) -> None:
    """Fail if this rank would resume from another position than rank 0."""
    main = handler.world.broadcast(position)
    if main != position:
        raise CheckpointError(
            f"rank {handler.world.rank} would resume from position {position}, rank 0 from {main}: "
            f"keep checkpoints in a folder that all ranks share."
        )
