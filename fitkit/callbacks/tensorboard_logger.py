"""TensorBoardLogger: logs a run to event files for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from fitkit.callbacks.support.tracker_logger import StepRow, TrackerLogger, require_package
from fitkit.checkpointing.savers.filenames import require_inside
from fitkit.core.argument_checks import require_path
from fitkit.core.errors import ConfigurationError

_EVENT_FILES = "events.out.tfevents."
_FRAME_BYTES = 16  # around each record: its length and two checksums


class TensorBoardLogger(TrackerLogger):
    """Logs a run to its own folder below ``log_dir``; show it with ``tensorboard --logdir runs``.

    Every value is a scalar; hyperparameters are on TensorBoard's HParams page. A resumed run first
    removes the steps that are trained again from its event files, so that no step is there twice,
    and continues in a new file of the same folder. Checkpoints are not uploaded. See
    ``TrackerLogger`` for what is logged.

    Args:
        log_dir: the local folder of all runs; it is created when a run begins.
        name: the run's folder in it; if it exists, ``name_2``, ``name_3`` and so on.
        parameters: hyperparameters in addition to those that fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        refresh_seconds: least time between two writes, at least 0.

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
        require_package("TensorBoardLogger", "tensorboard", "tensorboard")
        require_path("log_dir", log_dir)
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ConfigurationError(
                f"name must be the name of a folder in log_dir, without a path, received {name!r}."
            )
        self.log_dir = Path(log_dir)
        self.run_name = name
        self._writer: Any = None

    def identity(self) -> str:
        """The name of ``log_dir`` without its parent folder, because it may be moved."""
        return self.log_dir.name

    @property
    def run_dir(self) -> Path | None:
        """The folder of the run; ``None`` before one has begun."""
        return None if self.run_id is None else self.log_dir / self.run_id

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            CheckpointError: keys are missing or unknown, or the run's folder would not be in
                ``log_dir``; nothing was changed.
        """
        run_id = state_dict.get("run_id")
        require_inside([] if run_id is None else [run_id], self.name)
        super().load_state_dict(state_dict)

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Create a folder, or cut the event files of that one; then create an event file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        run_id = self._new_folder() if run_id is None else run_id
        folder = self.log_dir / run_id
        if not folder.is_dir():
            warnings.warn(
                f"{self.name}: the folder of this run, {str(folder)!r}, no longer exists: the "
                f"values that it held are missing from now on.",
                stacklevel=2,
            )
            folder.mkdir(parents=True)
        event_files = sorted(folder.glob(f"{_EVENT_FILES}*"))
        for path in event_files:
            self._cut(path)
        self._writer = RecordWriter(_next_file(folder, event_files).open("xb"))
        self._write(file_version="brain.Event:2")
        self._writer.flush()
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
        """Remove the events from the first one after ``written_step`` on."""
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event

        size = 0
        for record in RawEventFileLoader(str(path)).Load():
            if Event.FromString(record).step > self.written_step:
                break
            size += len(record) + _FRAME_BYTES
        if size < path.stat().st_size:
            os.truncate(path, size)

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write the row of the run on the HParams page."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        given = {name: value for name, value in parameters.items() if value is not None}
        self._write(summary=hparams_pb(given), step=0)

    def write_rows(self, rows: Iterable[StepRow]) -> None:
        """Write one event per step."""
        for step, seconds, values in rows:
            scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
            self._write(summary={"value": scalars}, step=step, wall_time=seconds)
        self._writer.flush()

    def close_run(self, status: str) -> None:
        """Write the status at a step after the last one, so that a resume cuts it off."""
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        end = {
            "status": "STATUS_SUCCESS" if status == "finished" else "STATUS_FAILURE",
            "end_time_secs": time.time(),
        }
        content = HParamsPluginData(session_end_info=end)
        value = {
            "tag": metadata.SESSION_END_INFO_TAG,
            "metadata": metadata.create_summary_metadata(content),
            "tensor": metadata.NULL_TENSOR,
        }
        with closing(self._writer):
            self._write(summary={"value": [value]}, step=self.written_step + 1)
        self._writer = None

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(**{"wall_time": time.time(), **event}).SerializeToString())


def _next_file(folder: Path, event_files: list[Path]) -> Path:
    """A name that sorts after all others, because readers take the files in this order."""
    starts = [path.name.removeprefix(_EVENT_FILES)[:10] for path in event_files]
    latest = max((int(start) for start in starts if start.isdecimal()), default=0)
    start = max(int(time.time()), latest + 1)
    return folder / f"{_EVENT_FILES}{start:010d}.{socket.gethostname()}.{os.getpid()}"
