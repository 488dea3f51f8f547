"""TensorBoardLogger: a run as event files for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from fitkit.callbacks.tracker import Row, Tracker
from fitkit.checkpointing.naming import require_inside
from fitkit.core.errors import ConfigurationError, missing_package

_EVENT_FILES = "events.out.tfevents."
_FRAME_BYTES = 16  # around each record: its length and two checksums


class TensorBoardLogger(Tracker):
    """Writes a run into a folder of its own below ``log_dir``: ``tensorboard --logdir runs``.

    Every value is a scalar; the parameters are on the page of hyperparameters. A resumed run first
    cuts from its event files what will be trained again, so that no reader sees a step twice, and
    goes on in a new file of the same folder. What else it does, ``Tracker`` says; checkpoints are
    not uploaded, as TensorBoard has no place for them.

    Args:
        log_dir: the local folder of all runs; it is made when a run begins.
        name: the run's folder in it; if there is one already, ``name_2``, ``name_3`` and so on.
        parameters: what describes the run besides what fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        refresh_seconds: least time between two writings, at least 0.

    Raises:
        ConfigurationError: an argument cannot be used, or tensorboard is not installed.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "runs",
        name: str = "run",
        *,
        parameters: Mapping[str, Any] | None = None,
        every_n_batches: int | None = 50,
        refresh_seconds: float = 5.0,
    ) -> None:
        super().__init__(
            parameters=parameters, every_n_batches=every_n_batches, refresh_seconds=refresh_seconds
        )
        if not isinstance(log_dir, (str, os.PathLike)) or not str(log_dir):
            raise ConfigurationError(f"log_dir must be the path of a folder, received {log_dir!r}.")
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ConfigurationError(
                f"name must be the name of a folder in log_dir, without a path, received {name!r}."
            )
        self.log_dir = Path(log_dir)
        self.run_name = name
        self._tensorboard = _tensorboard()
        self._file: BinaryIO | None = None

    def identity(self) -> str:
        """The name of the folder of all runs, which may be moved."""
        return self.log_dir.name

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run; ``None`` before one has begun."""
        return None if self.run_id is None else self.log_dir / self.run_id

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over progress from a checkpoint.

        Raises:
            CheckpointError: keys are missing or unknown, or the run's folder would not be in
                ``log_dir``; nothing was changed.
        """
        require_inside(
            [name for name in (state_dict.get("run_id"),) if name is not None], self.name
        )
        super().load_state_dict(state_dict)

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Make a folder, or cut the files of that one; then begin a file."""
        run_id = self._new_folder() if run_id is None else run_id
        folder = self.log_dir / run_id
        if not folder.is_dir():
            warnings.warn(
                f"{self.name}: {str(folder)!r}, to which this run wrote before, is not there any "
                f"more: what it held is missing from now on.",
                stacklevel=2,
            )
            folder.mkdir(parents=True)
        found = sorted(folder.glob(f"{_EVENT_FILES}*"))
        for path in found:
            self._cut(path)
        self._file = _next_file(folder, found).open("xb")
        self._write(file_version="brain.Event:2")
        self._file.flush()
        return run_id

    def _new_folder(self) -> str:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        name, number = self.run_name, 2
        while True:
            try:
                (self.log_dir / name).mkdir()
            except FileExistsError:
                name, number = f"{self.run_name}_{number}", number + 1
            else:
                return name

    def _cut(self, path: Path) -> None:
        """Keep the beginning of a file, up to the last whole event of a step that counts."""
        size = 0
        for record in self._tensorboard.RawEventFileLoader(str(path)).Load():
            if self._tensorboard.Event.FromString(record).step > self.written_step:
                break
            size += len(record) + _FRAME_BYTES
        if size < path.stat().st_size:
            os.truncate(path, size)

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """The run becomes a line of the page of hyperparameters."""
        known = {name: value for name, value in parameters.items() if value is not None}
        self._write(summary=self._tensorboard.hparams_pb(known), step=0)

    def write_rows(self, rows: Iterable[Row]) -> None:
        """One event per step."""
        for step, seconds, values in rows:
            found = [{"tag": name, "simple_value": value} for name, value in values.items()]
            self._write(summary={"value": found}, step=step, wall_time=seconds)
        self._flush()

    def close_run(self, status: str) -> None:
        """Note how it ended, behind the last step, so that a resume cuts it off."""
        if self._file is None:
            return
        how = "STATUS_SUCCESS" if status == "finished" else "STATUS_FAILURE"
        hparams = self._tensorboard.hparams
        told = {"session_end_info": {"status": how, "end_time_secs": time.time()}}
        value = {
            "tag": hparams.SESSION_END_INFO_TAG,
            "metadata": hparams.create_summary_metadata(
                self._tensorboard.HParamsPluginData(**told)
            ),
            "tensor": hparams.NULL_TENSOR,
        }
        with self._file:
            self._write(summary={"value": [value]}, step=self.written_step + 1)
        self._file = None

    def _write(self, **event: Any) -> None:
        record = self._tensorboard.Event(**{"wall_time": time.time(), **event})
        self._tensorboard.RecordWriter(self._file).write(record.SerializeToString())

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()


def _next_file(folder: Path, found: list[Path]) -> Path:
    """A name that sorts behind all others, as readers take the files in this order."""
    starts = [path.name.removeprefix(_EVENT_FILES)[:10] for path in found]
    latest = max((int(start) for start in starts if start.isdecimal()), default=0)
    start = max(int(time.time()), latest + 1)
    return folder / f"{_EVENT_FILES}{start:010d}.{socket.gethostname()}.{os.getpid()}"


def _tensorboard() -> SimpleNamespace:
    """What is used of tensorboard's package."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise missing_package("TensorBoardLogger", "tensorboard") from error
    return SimpleNamespace(
        Event=Event,
        HParamsPluginData=HParamsPluginData,
        RawEventFileLoader=RawEventFileLoader,
        RecordWriter=RecordWriter,
        hparams=metadata,
        hparams_pb=hparams_pb,
    )
