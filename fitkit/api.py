"""All public names; ``fitkit`` imports them when the first one is used."""

from fitkit.callbacks.console_logger import ConsoleLogger
from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.early_stopping import EarlyStopping
from fitkit.callbacks.ema import EMA
from fitkit.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from fitkit.callbacks.history import History
from fitkit.callbacks.html_report import HTMLReport
from fitkit.callbacks.json_lines_logger import JSONLinesLogger
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.callbacks.learning_rate_monitor import LearningRateMonitor
from fitkit.callbacks.learning_rate_scheduler import LearningRateScheduler
from fitkit.callbacks.mlflow_logger import MLflowLogger
from fitkit.callbacks.model_checkpoint import ModelCheckpoint
from fitkit.callbacks.prediction_writer import PredictionWriter
from fitkit.callbacks.profiler import Profiler
from fitkit.callbacks.progress_bar import ProgressBar
from fitkit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from fitkit.callbacks.tensorboard_logger import TensorBoardLogger
from fitkit.callbacks.terminate_on_nan import TerminateOnNaN
from fitkit.callbacks.throughput_monitor import ThroughputMonitor
from fitkit.callbacks.timer import Timer
from fitkit.callbacks.wandb_logger import WandbLogger
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.savers.retention import Retention
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
    DeadlockError,
    FitkitError,
    MonitorError,
    Preempted,
    RankError,
    SamplingError,
    SaveError,
    UnsafeCheckpointError,
)
from fitkit.core.event import Event
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor
from fitkit.core.state import FitState
from fitkit.core.types import LoggingMode, ModelType, StepOutput
from fitkit.distributed.on_rank import on_rank
from fitkit.distributed.strategy import DDP, FSDP
from fitkit.metrics.epoch_metric import EpochMetric
from fitkit.metrics.metric import MeanMetric, Metric
from fitkit.metrics.standard import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    R2Score,
    TopKAccuracy,
)
from fitkit.nn_handler import NNHandler
from fitkit.summary.model_summary import ModelSummary
from fitkit.tuning.lr_finder import LearningRateSweep
from fitkit.version import __version__

__all__ = [
    "DDP",
    "EMA",
    "FSDP",
    "Accuracy",
    "AutoSaver",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConfigurationError",
    "ConsoleLogger",
    "DamagedCheckpointError",
    "DataError",
    "DeadlockError",
    "EarlyStopping",
    "EpochMetric",
    "Event",
    "FitState",
    "FitkitError",
    "GradientAccumulationScheduler",
    "HTMLReport",
    "History",
    "JSONLinesLogger",
    "LambdaCallback",
    "LearningRateMonitor",
    "LearningRateScheduler",
    "LearningRateSweep",
    "LoggingMode",
    "Logs",
    "MLflowLogger",
    "MeanAbsoluteError",
    "MeanMetric",
    "MeanSquaredError",
    "Metric",
    "ModelCheckpoint",
    "ModelSummary",
    "ModelType",
    "Monitor",
    "MonitorError",
    "NNHandler",
    "PredictionWriter",
    "Preempted",
    "Profiler",
    "ProgressBar",
    "R2Score",
    "RankError",
    "ReduceLROnPlateau",
    "Retention",
    "SamplingError",
    "SaveError",
    "StepOutput",
    "TensorBoardLogger",
    "TerminateOnNaN",
    "ThroughputMonitor",
    "Timer",
    "TopKAccuracy",
    "UnsafeCheckpointError",
    "WandbLogger",
    "__version__",
    "on_rank",
]
