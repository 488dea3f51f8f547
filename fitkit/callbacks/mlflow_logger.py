"""MLflowLogger: a run in MLflow's store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fitkit.callbacks.tracker import Row, Tracker
from fitkit.core.errors import ConfigurationError, missing_package

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100  # that MLflow takes at once
_STATUS = {"finished": "FINISHED", "killed": "KILLED", "failed": "FAILED"}
_FOLDER = "checkpoints"


class MLflowLogger(Tracker):
    """Writes a run to MLflow: a server, a database, or a local file such as SQLite's.

    It speaks to the store directly: MLflow's own idea of an active run is neither used nor changed.
    MLflow cannot take values back, and would keep a value twice that is logged twice. A resumed run
    therefore asks what the run has of later steps, and does not log that again; a parameter cannot
    change, so a run keeps those with which it began. What else it does, ``Tracker`` says.

    Args:
        experiment_name: the experiment; it is made if there is none.
        run_name: the run's name; by default MLflow finds one.
        tracking_uri: the store, such as ``"sqlite:///mlflow.db"``; by default what MLflow is set
            to, in the program or by ``MLFLOW_TRACKING_URI``.
        tags: names and values that are put on the run.
        parameters: what describes the run besides what fitkit knows.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        log_checkpoints: which checkpoints become artefacts below ``checkpoints``: ``False``: none;
            ``"best"``: the best ones by a ``ModelCheckpoint``'s monitored value; ``True``: all.
        refresh_seconds: least time between two writings, at least 0.

    Raises:
        ConfigurationError: an argument cannot be used, or mlflow is not installed; when training
            begins, if the run to go on with is not in the store.
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
        if not isinstance(experiment_name, str) or not experiment_name:
            raise ConfigurationError(
                f"experiment_name must be a name, received {experiment_name!r}."
            )
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.tags = dict(tags or {})
        self._mlflow = _mlflow()
        self._client: Any = None

    def identity(self) -> str:
        """The experiment."""
        return self.experiment_name

    # ---- the run --------------------------------------------------------------------------------

    def open_run(self, run_id: str | None) -> str:
        """Create a run, or set that one to running again."""
        self._client = self._mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if run_id is None:
            run = self._client.create_run(
                self._experiment(), run_name=self.run_name, tags=self.tags
            )
            return str(run.info.run_id)
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._mlflow.MlflowException as error:
            raise ConfigurationError(
                f"{self.name} cannot go on with the run {run_id!r} in the store "
                f"{self._client.tracking_uri!r}: {error}. Pass the tracking_uri with which the run "
                f"was begun, or resume without this callback."
            ) from error
        return run_id

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment_name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self.experiment_name))

    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """As MLflow's parameters, which are text."""
        found = iter([self._mlflow.Param(name, str(value)) for name, value in parameters.items()])
        while some := list(islice(found, _MOST_PARAMETERS)):
            self._client.log_batch(self.run_id, params=some)

    def write_rows(self, rows: Iterable[Row]) -> None:
        """As MLflow's metrics."""
        metric = self._mlflow.Metric
        found = (
            metric(name, value, int(1000 * seconds), step)
            for step, seconds, values in rows
            for name, value in values.items()
        )
        while some := list(islice(found, _MOST_METRICS)):
            self._client.log_batch(self.run_id, metrics=some)

    def rows_beyond(self, step: int) -> dict[int, dict[str, float]]:
        """What the store has of later steps."""
        found: dict[int, dict[str, float]] = {}
        for name in self._client.get_run(self.run_id).data.metrics:
            for metric in self._client.get_metric_history(self.run_id, name):
                if metric.step > step:
                    found.setdefault(metric.step, {})[name] = metric.value
        return found

    def write_file(self, path: Path) -> None:
        """As an artefact; one of the same name is replaced."""
        self._client.log_artifact(self.run_id, str(path), _FOLDER)

    def close_run(self, status: str) -> None:
        """With MLflow's word for it."""
        self._client.set_terminated(self.run_id, _STATUS[status])


def _mlflow() -> SimpleNamespace:
    """What is used of mlflow's package."""
    try:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise missing_package("MLflowLogger", "mlflow-skinny", "sqlalchemy", "alembic") from error
    return SimpleNamespace(
        Metric=Metric, MlflowClient=MlflowClient, MlflowException=MlflowException, Param=Param
    )
