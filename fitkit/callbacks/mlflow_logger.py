"""MLflowLogger: logs a run to MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitkit.callbacks.support.tracker_logger import StepRow, TrackerLogger, require_package
from fitkit.core.errors import ConfigurationError

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100  # that MLflow accepts in one call
_STATUS = {"finished": "FINISHED", "killed": "KILLED", "failed": "FAILED"}
_FOLDER = "checkpoints"


class MLflowLogger(TrackerLogger):
    """Logs a run to MLflow: to a server, a database, or a local file such as SQLite's.

    It uses MLflow's client; the active run of ``mlflow.start_run`` is neither used nor changed.
    MLflow cannot delete values and keeps both if one is logged twice, so a resumed run asks which
    later steps the store has and does not log them again. Parameters cannot change, so a run keeps
    those of its beginning. See ``TrackerLogger`` for what is logged and how a run is resumed.

    Args:
        experiment_name: the experiment; it is created if it does not exist.
        run_name: the run's name; by default MLflow chooses one.
        tracking_uri: the store, such as ``"sqlite:///mlflow.db"``; default: MLflow's own setting,
            in the program or by ``MLFLOW_TRACKING_URI``.
        tags: names and values that are set on the run.
        parameters: hyperparameters in addition to those that fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        log_checkpoints: which checkpoints become artifacts below ``checkpoints``: ``False``: none;
            ``"best"``: the best ones by a ``ModelCheckpoint``'s monitored value; ``True``: all.
        refresh_seconds: least time between two writes, at least 0.

    Raises:
        ConfigurationError: an argument cannot be used, or mlflow is not installed; when training
            begins, if the run to continue is not in the store.
    """

    def __init__(
        self,
        experiment_name: str = "Default",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        every_n_batches: int | None = 50,
        log_checkpoints: bool | str = False,
        refresh_seconds: float = 5.0,
    ) -> None:
        super().__init__(
            parameters=parameters,
            every_n_batches=every_n_batches,
            log_checkpoints=log_checkpoints,
            refresh_seconds=refresh_seconds,
        )
        require_package("MLflowLogger", "mlflow", "mlflow-skinny", "sqlalchemy", "alembic")
        if not isinstance(experiment_name, str) or not experiment_name:
            raise ConfigurationError(
                f"experiment_name must be a name, received {experiment_name!r}."
            )
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.tags = dict(tags or {})
        self._client: Any = None

    def identity(self) -> str:
        """The experiment."""
        return self.experiment_name

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Create a run, or set that one to running again."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        if run_id is None:
            experiment_id = self._experiment_id()
            run = self._client.create_run(experiment_id, run_name=self.run_name, tags=self.tags)
            return str(run.info.run_id)
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            raise ConfigurationError(
                f"{self.name} cannot continue the run {run_id!r} in the store "
                f"{self._client.tracking_uri!r}: {error}. Pass the tracking_uri with which the run "
                f"was started, or resume without this callback."
            ) from error
        return run_id

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self.experiment_name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(self.experiment_name))

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log MLflow parameters, which are text."""
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in parameters.items()]
        for start in range(0, len(params), _MOST_PARAMETERS):
            chunk = params[start : start + _MOST_PARAMETERS]
            self._client.log_batch(self.run_id, params=chunk)

    def write_rows(self, rows: Iterable[StepRow]) -> None:
        """Log MLflow metrics."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * seconds), step)
            for step, seconds, values in rows
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MOST_METRICS])

    def rows_after(self, step: int) -> dict[int, dict[str, float]]:
        """The values of later steps in the store."""
        rows: dict[int, dict[str, float]] = {}
        for name in self._client.get_run(self.run_id).data.metrics:
            for metric in self._client.get_metric_history(self.run_id, name):
                if metric.step > step:
                    rows.setdefault(metric.step, {})[name] = metric.value
        return rows

    def upload_file(self, path: Path) -> None:
        """Log an artifact; one of the same name is replaced."""
        self._client.log_artifact(self.run_id, str(path), _FOLDER)

    def close_run(self, status: str) -> None:
        """Set MLflow's status of the run."""
        self._client.set_terminated(self.run_id, _STATUS[status])
