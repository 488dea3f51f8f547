"""WandbLogger: logs a run to Weights & Biases, online or offline."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitkit.callbacks.support.tracker_logger import StepRow, TrackerLogger, require_package
from fitkit.callbacks.support.wandb_file import WandbFile
from fitkit.core.errors import ConfigurationError

_EXIT_CODES = {"finished": 0, "killed": 255, "failed": 1}  # 255 is W&B's own for an interrupt
_LONGEST_WAIT = 10.0  # seconds, for W&B's process to write the end of an offline run
_OWN_OPTIONS = ("config", "id", "name", "project", "resume", "resume_from", "fork_from")


class WandbLogger(TrackerLogger):
    """Logs a run to Weights & Biases; with ``mode="offline"`` to files for ``wandb sync``.

    It uses its own run, ``callback.wandb_run`` during training; ``wandb.run`` is not changed. W&B
    cannot delete values, so a resumed run continues under the same id and leaves out the steps
    that it already has. Offline, each start writes a segment of its own; synced in their order
    (``wandb sync wandb/offline-run-*``) they are one run. Online, W&B's own process sends values
    asynchronously; if it was killed together with training, what it had not sent is in its local
    folder for ``wandb sync``. See ``TrackerLogger`` for what is logged.

    Args:
        project: W&B's project; default: W&B's own setting.
        name: the run's name; by default W&B chooses one.
        parameters: hyperparameters in addition to those that fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        log_checkpoints: which checkpoints become versions of an artifact of type ``model``:
            ``False``: none; ``"best"``: the best ones by a ``ModelCheckpoint``'s monitored value;
            ``True``: all.
        refresh_seconds: least time between two writes, at least 0.
        **init_options: further arguments of ``wandb.init``, such as ``mode``, ``dir``, ``entity``,
            ``group``, ``tags`` and ``settings``.

    Raises:
        ConfigurationError: an argument cannot be used, or wandb is not installed.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        every_n_batches: int | None = 50,
        log_checkpoints: bool | str = False,
        refresh_seconds: float = 5.0,
        **init_options: Any,
    ) -> None:
        super().__init__(
            parameters=parameters,
            every_n_batches=every_n_batches,
            log_checkpoints=log_checkpoints,
            refresh_seconds=refresh_seconds,
        )
        require_package("WandbLogger", "wandb", "wandb")
        for option in _OWN_OPTIONS:
            if option in init_options:
                raise ConfigurationError(
                    f"{self.name} sets the argument {option!r} of wandb.init itself: leave it out"
                    + (", and pass parameters=." if option == "config" else ".")
                )
        self.project = project
        self.run_name = name
        self.init_options = {"reinit": "create_new", **init_options}
        self.wandb_run: Any = None
        self._file: WandbFile | None = None

    def identity(self) -> str:
        """The project."""
        return self.project or ""

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Start a run, or continue under that id."""
        from wandb import init

        options = dict(self.init_options)
        if options.get("dir") is not None:
            # W&B's process would resolve a relative path in the folder in which it was started
            options["dir"] = os.path.abspath(options["dir"])
        self.wandb_run = init(
            project=self.project,
            name=self.run_name,
            id=run_id,
            resume=None if run_id is None else "allow",
            **options,
        )
        self._file = WandbFile(Path(self.wandb_run.settings.sync_file))
        return str(self.wandb_run.id)

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Update the run's config."""
        self.wandb_run.config.update(dict(parameters), allow_val_change=True)

    def write_rows(self, rows: Iterable[StepRow]) -> None:
        """Log one row of history per step; online, without those that the server already has."""
        run = self.wandb_run
        for step, seconds, values in rows:
            if step >= run.starting_step:
                run.log({**values, "_timestamp": seconds}, step=step, commit=True)

    def rows_after(self, step: int) -> dict[int, dict[str, float]]:
        """The later steps of earlier offline segments; online, ``wandb.init`` asks the server."""
        run = self.wandb_run
        if not run.offline:
            return {}
        rows: dict[int, dict[str, float]] = {}
        for path in Path(run.settings.wandb_dir).glob(f"*run-*/run-{run.id}.wandb"):
            rows.update(WandbFile(path).read_steps())
        return {number: values for number, values in rows.items() if number > step}

    def durable_step(self) -> float:
        """The last step in the local file; W&B's process keeps later ones in memory for a while."""
        if self._file is None:
            return 0
        self._file.read_steps()
        return self._file.last_step

    def upload_file(self, path: Path) -> None:
        """Log a version of the run's artifact, with the file's name as an alias."""
        from wandb import Artifact

        artifact = Artifact(f"checkpoint-{self.run_id}", type="model")
        artifact.add_file(str(path))
        self.wandb_run.log_artifact(artifact, aliases=["latest", path.stem])

    def close_run(self, status: str) -> None:
        """Finish the run, and wait until its file is complete."""
        run, file = self.wandb_run, self._file
        self.wandb_run = self._file = None
        if run is None or file is None:
            return
        run.finish(exit_code=_EXIT_CODES[status])
        deadline = time.monotonic() + _LONGEST_WAIT
        # offline, finish returns while W&B's process still has the last rows in memory
        while not file.is_complete and time.monotonic() < deadline:
            time.sleep(0.001)
            file.read_steps()
