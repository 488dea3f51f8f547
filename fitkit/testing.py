"""Assertions for authors of callbacks: a run resumed anywhere equals the uninterrupted one."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import run_lock, single_or_sharded
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.tree_diff import differing_leaves
from fitkit.nn_handler import NNHandler
from fitkit.runtime.determinism import deterministic as deterministic
from fitkit.runtime.device import resolve_device
from fitkit.runtime.lazy_modules import uninitialized_names
from fitkit.runtime.rng import capture_streams, restore_streams, seed_host_streams

_BOUNDARY_FILE = ".boundary.pth"
_NOT_PROGRESS = frozenset(
    {"handler", "params", "run", "_initial_state", "_initial_own_state", "_known_config"}
)


class _BoundaryRecorder(Saver):
    """Saves at every event that a run can be resumed from, and copies the folder each time.

    Every run has one, as a save inside a hook records who listens; that of a resumed run is idle.
    """

    order = 10_000
    needs_all_ranks = False

    def __init__(self, copies: Path | None = None) -> None:
        super().__init__()
        self._copies = copies
        self._label = ""
        self.boundaries: dict[str, Path] = {}  # by event, epoch and batch: copies of the folder

    @property
    def folder(self) -> Path:
        return Path()

    def state_dict(self) -> dict[str, Any]:
        return {}  # the recorder is no part of the run

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def config(self) -> dict[str, Any]:
        return {}  # the folder of the copies differs

    def _save_at(self, event: str, epoch: int, batch: int | None = None) -> None:
        # no resume begins inside an evaluation that a callback runs in a hook
        if self._copies is None or self.handler.callbacks.is_nested:
            return
        if uninitialized_names(self.model):
            return  # a lazy model has nothing to save before its first batch
        where = f"epoch {epoch}" if batch is None else f"epoch {epoch}, batch {batch}"
        of_set = self.handler.state.evaluation_set
        self._label = f"{event}, {where}" + (f", set {of_set!r}" if of_set else "")
        self.last_step = -1
        self.request_save(self.folder / _BOUNDARY_FILE)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._save_at("on_epoch_begin", epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        self._save_at("on_train_batch_end", self.handler.state.epoch, batch)

    def on_test_begin(self, logs: Logs) -> None:
        self._save_at("on_test_begin", self.handler.state.epoch)

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        self._save_at("on_test_batch_end", self.handler.state.epoch, batch)

    def on_test_end(self, logs: Logs) -> None:
        self._save_at("on_test_end", self.handler.state.epoch)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._save_at("on_epoch_end", epoch)

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        if self._copies is not None and Path(path).name == _BOUNDARY_FILE:
            copy = self._copies / f"{len(self.boundaries):05d}"
            # a lock says which process trains in this folder, and not in the copy
            locks = shutil.ignore_patterns(f"*{run_lock.SUFFIX}")
            shutil.copytree(self.folder, copy, ignore=locks)
            self.boundaries[self._label] = copy


def assert_resumes_exactly(
    make_handler: Callable[[], NNHandler],
    *,
    make_callbacks: Callable[[], list[Callback]] = list,
    ignore: Iterable[str] = (),
    every: int = 1,
    **fit_options: Any,
) -> list[str]:
    """Save a run at every boundary, resume from each with new objects, and compare the results.

    Boundaries are the beginning of an epoch, every training batch, the beginning, every batch and
    the end of validation, and the end of an epoch, the last one included. The current folder of
    each run is a temporary one, so callbacks should write to relative paths. Compared are the whole
    state of the handler, every plain attribute of every callback (private ones only of callbacks
    that are not fitkit's), and every file.

    Args:
        make_handler: builds a new handler with its parts, data and callbacks.
        make_callbacks: builds the callbacks of the call of ``fit``.
        ignore: patterns (``fnmatch``) of paths of values that may differ, such as times.
        every: try only every n-th boundary, and the last.
        **fit_options: arguments of ``fit``, such as ``epochs``.

    Returns:
        the labels of the boundaries that were tried.

    Raises:
        AssertionError: a result differs; the message names the boundary, and the path and both
            values of the first difference.

    >>> import torch
    >>> class Forgetful(Callback):
    ...     def __init__(self):
    ...         self.count = 0
    ...     def on_train_batch_end(self, batch, logs):
    ...         self.count += 1
    >>> def make_handler():
    ...     handler = NNHandler(torch.nn.Linear, in_features=2, out_features=1, seed=0)
    ...     handler.set_optimizer(torch.optim.SGD, lr=0.1)
    ...     handler.set_loss_fn(torch.nn.MSELoss())
    ...     handler.set_train_loader((torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)
    ...     return handler
    >>> assert_resumes_exactly(make_handler, make_callbacks=lambda: [Forgetful()], epochs=1)
    ... # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    AssertionError: resumed at on_train_batch_end, epoch 0, batch 0:
        ['callbacks']['Forgetful']['count'] is 1, uninterrupted 2
    """
    for name in ("callbacks", "resume", "progress_bar"):
        if name in fit_options:
            raise ConfigurationError(
                f"assert_resumes_exactly sets {name} itself: "
                f"{'use make_callbacks=' if name == 'callbacks' else 'leave it out'}."
            )
    patterns = tuple(ignore)
    device = resolve_device(None)
    streams = capture_streams(device)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch).resolve()
            recorder = _BoundaryRecorder(root / "copies")
            seed_host_streams(1)
            expected = _run(root / "whole", make_handler, make_callbacks, recorder, fit_options)
            if not recorder.boundaries:
                raise ConfigurationError("the run passed no boundary: train at least one batch.")
            labels = list(recorder.boundaries)
            tried = [x for n, x in enumerate(labels) if n % every == 0 or x == labels[-1]]
            for number, label in enumerate(tried):
                seed_host_streams(2 + number)
                options = {**fit_options, "resume": _BOUNDARY_FILE}
                folder = recorder.boundaries[label]
                idle = _BoundaryRecorder()
                received = _run(folder, make_handler, make_callbacks, idle, options)
                _compare(label, expected, received, patterns)
        return tried
    finally:
        restore_streams(streams, device)


def _run(
    folder: Path,
    make_handler: Callable[[], NNHandler],
    make_callbacks: Callable[[], list[Callback]],
    recorder: _BoundaryRecorder,
    fit_options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run leaves behind: its state, the attributes of its callbacks, and its files."""
    folder.mkdir(parents=True, exist_ok=True)
    with _working_in(folder):
        handler = make_handler()
        callbacks = make_callbacks()
        attached = [*handler.callbacks, *callbacks]
        handler.fit(callbacks=[*callbacks, recorder], progress_bar=False, **fit_options)
        return {
            "state": handler.get_state_dict(),
            "callbacks": _attributes(attached),
            "files": _files(Path()),
        }


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _attributes(callbacks: Iterable[Callback]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for callback in callbacks:
        key, number = callback.name, 2
        while key in attributes:
            key, number = f"{callback.name}_{number}", number + 1
        is_builtin = type(callback).__module__.startswith("fitkit.")
        attributes[key] = {
            name: value
            for name, value in vars(callback).items()
            if name not in _NOT_PROGRESS
            and not (is_builtin and name.startswith("_"))
            and _is_comparable(value)
        }
    return attributes


def _is_comparable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_comparable(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_comparable(item) for item in value)
    plain = (type(None), bool, int, float, complex, str, bytes, set, frozenset)
    return isinstance(value, (*plain, Tensor, np.ndarray, np.generic))


def _files(folder: Path) -> dict[str, Any]:
    """The content of every file by its path: checkpoints as their state, others as bytes."""
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == _BOUNDARY_FILE:
            continue
        try:
            files[path.as_posix()] = single_or_sharded.read(path)
        except CheckpointError:
            files[path.as_posix()] = path.read_bytes()
    return files


def _compare(
    label: str, expected: dict[str, Any], received: dict[str, Any], ignore: tuple[str, ...]
) -> None:
    for path, first, second in differences(expected, received):
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore):
            raise AssertionError(
                f"resumed at {label}: {path} is {_shortened(second)}, uninterrupted "
                f"{_shortened(first)}"
            )


def differences(first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each leaf in which two nested structures differ, as ``(path, first value, second value)``.

    Tensors and arrays are compared bit for bit, with their types; NaN equals NaN.

    >>> list(differences({"a": [1, 2]}, {"a": [1, 3]}))
    [("['a'][1]", 2, 3)]
    """
    for keys, one, other in differing_leaves(first, second):
        yield "".join(f"[{key!r}]" for key in keys), one, other


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
