"""What a callback's author asserts with: a run resumed anywhere equals the uninterrupted one."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fitkit.checkpointing import checkpoint
from fitkit.checkpointing.comparing import differing_leaves
from fitkit.checkpointing.saver import Saver
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError, ConfigurationError
from fitkit.core.logs import Logs
from fitkit.nn_handler import NNHandler
from fitkit.runtime.determinism import deterministic as deterministic
from fitkit.runtime.device import resolve_device
from fitkit.runtime.rng import capture_streams, restore_streams, seed_host_streams

_BOUNDARY_FILE = ".boundary.pth"
_NOT_PROGRESS = frozenset({"handler", "params", "run"})


@dataclass
class Boundary:
    """A moment at which the uninterrupted run was saved.

    Attributes:
        label: the event, with the epoch and batch.
        folder: a copy of the run's folder, as it was at that moment.
    """

    label: str
    folder: Path


class BoundaryRecorder(Saver):
    """Saves at every event that a run can be resumed from, and keeps a copy of the folder."""

    order = 10_000

    def __init__(self, copies: Path) -> None:
        super().__init__()
        self._copies = copies
        self._label = ""
        self.boundaries: list[Boundary] = []

    @property
    def folder(self) -> Path:
        """The folder in which the run works."""
        return Path()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the recorder is not part of the run."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over."""

    def _save_at(self, event: str, epoch: int, batch: int | None = None) -> None:
        where = f"epoch {epoch}" if batch is None else f"epoch {epoch}, batch {batch}"
        self._label = f"{event}, {where}"
        self.last_step = -1
        self.ask(self.folder / _BOUNDARY_FILE)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Before the first batch."""
        self._save_at("on_epoch_begin", epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """After every training batch, the last one included."""
        self._save_at("on_train_batch_end", self.handler.state.epoch, batch)

    def on_test_begin(self, logs: Logs) -> None:
        """Between training and validation."""
        self._save_at("on_test_begin", self.handler.state.epoch)

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """Inside validation."""
        self._save_at("on_test_batch_end", self.handler.state.epoch, batch)

    def on_test_end(self, logs: Logs) -> None:
        """Between validation and the end of the epoch."""
        self._save_at("on_test_end", self.handler.state.epoch)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After the epoch's hooks; for the last epoch this is a finished run."""
        self._save_at("on_epoch_end", epoch)

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """All files of this moment are written."""
        if Path(path).name == _BOUNDARY_FILE:
            copy = self._copies / f"{len(self.boundaries):05d}"
            shutil.copytree(self.folder, copy)
            self.boundaries.append(Boundary(self._label, copy))


@dataclass
class Outcome:
    """What a run leaves behind: state, callbacks' attributes, and files."""

    state: dict[str, Any]
    callbacks: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)

    def as_tree(self) -> dict[str, Any]:
        """Everything that is compared."""
        return {"state": self.state, "callbacks": self.callbacks, "files": self.files}


def assert_resumes_exactly(
    make_handler: Callable[[], NNHandler],
    *,
    make_callbacks: Callable[[], list[Callback]] = list,
    ignore: Iterable[str] = (),
    every: int = 1,
    **fit_options: Any,
) -> list[str]:
    """Save a run at every boundary, resume each in fresh objects, and compare all ends.

    Boundaries are the beginning of an epoch, every training batch, the beginning, every batch and
    the end of validation, and the end of an epoch, the last one included. Each run works in a
    folder of its own, which is the current folder meanwhile, so callbacks should write to relative
    paths. Compared are the whole state of the handler, every plain attribute of every callback
    (private ones only of callbacks that are not fitkit's), and every file.

    Args:
        make_handler: builds a new handler with its parts, data and callbacks.
        make_callbacks: builds the callbacks of the call of ``fit``.
        ignore: patterns (``fnmatch``) of paths of leaves that may differ, such as times.
        every: try only every n-th boundary, and the last.
        **fit_options: arguments of ``fit``, ``epochs`` among them.

    Returns:
        the labels of the boundaries that were tried.

    Raises:
        AssertionError: an end differs; it names the boundary, and the path and both values of the
            first leaf that differs.

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
            recorder = BoundaryRecorder(root / "copies")
            seed_host_streams(1)
            expected = _run(root / "whole", make_handler, make_callbacks, recorder, fit_options)
            if not recorder.boundaries:
                raise ConfigurationError("the run passed no boundary: train at least one batch.")
            tried = _some(recorder.boundaries, every)
            for number, boundary in enumerate(tried):
                seed_host_streams(2 + number)
                options = {**fit_options, "resume": _BOUNDARY_FILE}
                outcome = _run(boundary.folder, make_handler, make_callbacks, None, options)
                _compare(boundary, expected, outcome, patterns)
        return [boundary.label for boundary in tried]
    finally:
        restore_streams(streams, device)


def _some(boundaries: list[Boundary], every: int) -> list[Boundary]:
    last = len(boundaries) - 1
    return [b for number, b in enumerate(boundaries) if number % every == 0 or number == last]


def _run(
    folder: Path,
    make_handler: Callable[[], NNHandler],
    make_callbacks: Callable[[], list[Callback]],
    recorder: BoundaryRecorder | None,
    fit_options: Mapping[str, Any],
) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    with _working_in(folder):
        handler = make_handler()
        callbacks = make_callbacks()
        attached = [*handler.callbacks, *callbacks]
        extra = [] if recorder is None else [recorder]
        handler.fit(callbacks=[*callbacks, *extra], progress_bar=False, **fit_options)
        return Outcome(handler.get_state_dict(), _attributes(attached), _contents(Path()))


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _attributes(callbacks: Iterable[Callback]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for callback in callbacks:
        key, number = callback.name, 2
        while key in found:
            key, number = f"{callback.name}_{number}", number + 1
        own = type(callback).__module__.startswith("fitkit.")
        found[key] = {
            name: value
            for name, value in vars(callback).items()
            if name not in _NOT_PROGRESS
            and name != "_initial_state"
            and not (own and name.startswith("_"))
            and _is_comparable(value)
        }
    return found


def _is_comparable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_comparable(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_comparable(item) for item in value)
    plain = (type(None), bool, int, float, complex, str, bytes, set, frozenset)
    return isinstance(value, (*plain, Tensor, np.ndarray, np.generic))


def _contents(folder: Path) -> dict[str, Any]:
    """Every file by its path: checkpoints by what they hold, others by their bytes."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == _BOUNDARY_FILE:
            continue
        try:
            contents[path.as_posix()] = checkpoint.read(path)
        except CheckpointError:
            contents[path.as_posix()] = path.read_bytes()
    return contents


def _compare(
    boundary: Boundary, expected: Outcome, outcome: Outcome, ignore: tuple[str, ...]
) -> None:
    for path, wanted, found in differences(expected.as_tree(), outcome.as_tree()):
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore):
            raise AssertionError(
                f"resumed at {boundary.label}: {path} is {_shown(found)}, uninterrupted "
                f"{_shown(wanted)}"
            )


def differences(first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each leaf at which two nestings differ, as ``(path, first value, second value)``.

    Tensors and arrays are compared bit for bit, with their types; NaN equals NaN.

    >>> list(differences({"a": [1, 2]}, {"a": [1, 3]}))
    [("['a'][1]", 2, 3)]
    """
    for keys, one, other in differing_leaves(first, second):
        yield "".join(f"[{key!r}]" for key in keys), one, other


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
