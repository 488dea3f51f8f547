"""A call of ``fit`` that was finished before the program was restarted: its result, restored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.read_weights import check_weights
from fitkit.core.errors import CheckpointError
from fitkit.core.state import Phase
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.state_dict import load_handler_state_dict
from fitkit.training.resume_report import shown_path


def restore_finished_call(
    handler: BaseHandler, found: latest.LatestCheckpoint, this_call: int, folders: list[Path] | None
) -> str:
    """Bring a handler to where its finished call ``this_call`` ended, as far as files tell.

    ``found`` is the newest checkpoint, of a later call, whose parts may be others: another
    optimizer, another head. So a checkpoint of this call's end is loaded if there still is one. If
    not, the handler gets history and counters, and the newest weights if they fit.

    Returns:
        what was loaded, in words.
    """
    end = (found.state.get("call_ends") or {}).get(this_call)
    own = latest.find_latest(
        folders or [], handler.parallel.empty_dtensor, handler.world, last_call=this_call
    )
    if own.path is not None and _is_end(own.state, this_call, end):
        load_handler_state_dict(handler, own.state)
        source = shown_path(own.path)
    else:
        source = "" if found.path is None else shown_path(found.path)
        if not _load_result(handler, found.state, end):
            source += " (without its weights, which are of another model)"
    handler.state.call = this_call
    handler.session.call_is_open = False
    return source


def _is_end(state: Mapping[str, Any], this_call: int, end: Mapping[str, int] | None) -> bool:
    progress = state["progress"]["state"]
    if progress["call"] != this_call or progress["phase"] != Phase.BEGIN.value:
        return False
    return end is None or progress["global_step"] == end["global_step"]


def _load_result(
    handler: BaseHandler, saved: Mapping[str, Any], end: Mapping[str, int] | None
) -> bool:
    """Load history, counters and weights; return whether the weights fit."""
    _load_counters_and_history(handler, saved, end)
    try:
        check_weights(handler.module, saved["model_state_dict"], strict=True)
    except CheckpointError:
        return False
    handler.weights.load(decode(saved["model_state_dict"]))
    return True


def _load_counters_and_history(
    handler: BaseHandler, saved: Mapping[str, Any], end: Mapping[str, int] | None
) -> None:
    epochs = math.inf if end is None else end["epoch"]
    history = decode(saved["history"])
    number = sum(epoch < epochs for epoch in history["epoch"])
    columns = {name: values[:number] for name, values in history["history"].items()}
    # a later call may have logged further names
    kept = {name: values for name, values in columns.items() if not all(map(math.isnan, values))}
    handler.history.load_state_dict({"epoch": history["epoch"][:number], "history": kept})
    for name, value in (end or {}).items():
        setattr(handler.state, name, value)
