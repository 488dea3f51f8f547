"""``fit(resume=...)``: find the checkpoint to continue from, and load it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage.is_checkpoint import CHECKPOINT_SUFFIXES
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError, ConfigurationError
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.state_dict import load_handler_state_dict
from fitkit.training.options import FitOptions


def resume(handler: BaseHandler, options: FitOptions) -> tuple[bool, bool]:
    """Load the checkpoint that ``resume`` means.

    Returns:
        whether this call of ``fit`` continues an interrupted one, and whether this call was already
        complete when the checkpoint was made, because a later call had begun.
    """
    found, is_explicit = _find_checkpoint(handler, options.resume)
    path, saved = found.path, found.state
    if path is None:
        return False, False
    call = saved["progress"]["state"]["call"]
    this_call = handler.calls_made + 1
    if not is_explicit and call < this_call:
        return False, False
    load_handler_state_dict(handler, saved)
    if saved["progress"]["state"]["mid_step"]:
        warnings.warn(
            f"{str(path)!r} was saved in the middle of a training step: the run goes on with the "
            f"step's batch, but not bit for bit as it would have.",
            stacklevel=2,
        )
    if handler.state.stopping and not handler.state.stop_is_final:
        handler.state.clear_stop()
    handler.logger.info("resuming from %s", path)
    handler.saves.protected = path.resolve()
    return True, not is_explicit and call > this_call


def _find_checkpoint(handler: BaseHandler, resume: Any) -> tuple[latest.LatestCheckpoint, bool]:
    """The file to resume from, and whether the user named the file itself."""
    if resume is None or resume is False:
        return latest.LatestCheckpoint(), False
    savers = [callback for callback in handler.callbacks if isinstance(callback, Saver)]
    folders = [folder for saver in savers for folder in saver.folders]
    if resume is True:
        if not savers:
            raise ConfigurationError(
                "resume=True looks where this fit's savers write, but none is attached: call "
                "auto_save, add a ModelCheckpoint, or pass the folder or file to resume from."
            )
        return _newest(handler, folders), False
    if not isinstance(resume, (str, Path)):
        raise ConfigurationError(
            f"resume must be a file, a folder, True or None, received {resume!r}."
        )
    path = Path(resume)
    if path.is_dir() or (not path.exists() and path.suffix not in CHECKPOINT_SUFFIXES):
        below = [folder for folder in folders if path.resolve() in folder.resolve().parents]
        return _newest(handler, [path, *below]), False
    if not path.exists():
        raise CheckpointNotFoundError(
            f"resume={str(resume)!r}: there is no such file. Pass a folder to start anew where it "
            f"holds no checkpoint."
        )
    saved = latest.read_full(path, handler.parallel.empty_dtensor)
    _require_same_position(handler, schema.run_position(saved))
    return latest.LatestCheckpoint(path, saved), True


def _newest(handler: BaseHandler, folders: list[Path]) -> latest.LatestCheckpoint:
    found = latest.find_latest(folders, handler.parallel.empty_dtensor, handler.world)
    for sentence in found.skipped:
        warnings.warn(f"passed over while looking for a checkpoint: {sentence}", stacklevel=2)
    if found.path is None:
        handler.logger.info("no checkpoint to resume from: starting anew")
    return found


def _require_same_position(handler: BaseHandler, position: tuple[int, ...]) -> None:
    """Fail if this rank would resume from another position than rank 0."""
    main = handler.world.broadcast(position)
    if main != position:
        raise CheckpointError(
            f"rank {handler.world.rank} would resume from position {position}, rank 0 from {main}: "
            f"keep checkpoints in a folder that all ranks share."
        )
