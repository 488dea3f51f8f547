"""WandbLogger: a run in Weights & Biases, online or offline."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fitkit.callbacks.tracker import Row, Tracker
from fitkit.callbacks.wandb_history import WandbHistory
from fitkit.core.errors import ConfigurationError, missing_package

_EXIT_CODE = {"finished": 0, "killed": 255, "failed": 1}  # 255 is W&B's own for an interrupt
_PATIENCE_SECONDS = 10.0
_SET_HERE = ("config", "id", "name", "project", "resume", "resume_from", "fork_from")


class WandbLogger(Tracker):
    """Writes a run to Weights & Biases; with ``mode="offline"`` to files for ``wandb sync``.

    The run is one of its own (``wandb.run`` stays what it is); it is ``callback.wandb_run`` while
    training is under way. W&B cannot take values back. A resumed run goes on under the same id and
    leaves out the steps that it has already. Offline each start writes a segment of its own; synced
    in their order (``wandb sync wandb/offline-run-*``) they are one run without gap or double. What
    else it does, ``Tracker`` says.

    Online, W&B's own process sends values behind training. What it had not sent when it was killed
    together with training is in its local folder, from where ``wandb sync`` sends it.

    Args:
        project: W&B's project; by default what W&B is set to.
        name: the run's name; by default W&B finds one.
        parameters: what describes the run besides what fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        log_checkpoints: which checkpoints become versions of an artefact of type ``model``:
            ``False``: none; ``"best"``: the best ones by a ``ModelCheckpoint``'s monitored value;
            ``True``: all.
        refresh_seconds: least time between two writings, at least 0.
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
        for option in _SET_HERE:
            if option in init_options:
                raise ConfigurationError(
                    f"{self.name} decides on {option!r} of wandb.init itself: leave it out"
                    + (", and pass parameters=." if option == "config" else ".")
                )
        self.project = project
        self.run_name = name
        self.init_options = {"reinit": "create_new", **init_options}
        self.wandb_run: Any = None
        self._wandb = _wandb()
        self._history: WandbHistory | None = None

    def identity(self) -> str:
        """The project."""
        return self.project or ""

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Begin a run, or go on under that id."""
        options = dict(self.init_options)
        if options.get("dir") is not None:
            # W&B's process would take it from the folder in which it was started
            options["dir"] = os.path.abspath(options["dir"])
        run = self._wandb.init(
            project=self.project,
            name=self.run_name,
            id=run_id,
            resume=None if run_id is None else "allow",
            **options,
        )
        self.wandb_run = run
        self._history = WandbHistory(Path(run.settings.sync_file))
        return str(run.id)

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """As the run's config."""
        self.wandb_run.config.update(dict(parameters), allow_val_change=True)

    def write_rows(self, rows: Iterable[Row]) -> None:
        """One row of history per step; online, those that the server has already are left out."""
        run = self.wandb_run
        for step, seconds, values in rows:
            if step >= run.starting_step:
                run.log({**values, "_timestamp": seconds}, step=step, commit=True)

    def rows_beyond(self, step: int) -> dict[int, dict[str, float]]:
        """What earlier segments have of later steps; a server is asked by ``wandb.init``."""
        run = self.wandb_run
        if not run.offline:
            return {}
        found: dict[int, dict[str, float]] = {}
        for path in Path(run.settings.wandb_dir).glob(f"*run-*/run-{run.id}.wandb"):
            found.update(WandbHistory(path).read())
        return {number: values for number, values in found.items() if number > step}

    def safe_step(self) -> float:
        """W&B's process keeps the latest rows in memory for a while."""
        if self._history is None:
            return 0
        self._history.read()
        return self._history.last_step

    def write_file(self, path: Path) -> None:
        """As a version of the run's artefact, by the file's name as an alias too."""
        artifact = self._wandb.Artifact(f"checkpoint-{self.run_id}", type="model")
        artifact.add_file(str(path))
        self.wandb_run.log_artifact(artifact, aliases=["latest", path.stem])

    def close_run(self, status: str) -> None:
        """Wait until everything is written, and sent if it is to be."""
        run, history = self.wandb_run, self._history
        self.wandb_run = self._history = None
        if run is None or history is None:
            return
        run.finish(exit_code=_EXIT_CODE[status])
        deadline = time.monotonic() + _PATIENCE_SECONDS
        # offline, finish returns while W&B's process still has the last rows in memory
        while not history.is_complete and time.monotonic() < deadline:
            time.sleep(0.001)
            history.read()


def _wandb() -> SimpleNamespace:
    """What is used of wandb's package."""
    try:
        from wandb import Artifact, init
    except ImportError as error:
        raise missing_package("WandbLogger", "wandb") from error
    return SimpleNamespace(Artifact=Artifact, init=init)
