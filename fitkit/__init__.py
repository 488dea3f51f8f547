"""fitkit: training in PyTorch, callback first, resumable exactly.

>>> import fitkit
>>> fitkit.NNHandler.__name__
'NNHandler'
"""

from fitkit.callbacks.console_logger import ConsoleLogger
from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.early_stopping import EarlyStopping
from fitkit.callbacks.ema import EMA
from fitkit.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from fitkit.callbacks.history import History
from fitkit.callbacks.json_lines_logger import JSONLinesLogger
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.callbacks.learning_rate_monitor import LearningRateMonitor
from fitkit.callbacks.learning_rate_scheduler import LearningRateScheduler
from fitkit.callbacks.progress_bar import ProgressBar
from fitkit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from fitkit.callbacks.saving import ModelCheckpoint
from fitkit.callbacks.terminate_on_nan import TerminateOnNaN
from fitkit.callbacks.throughput_monitor import ThroughputMonitor
from fitkit.callbacks.timer import Timer
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.checkpointing.retention import Retention
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
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
from fitkit.metrics.metric import MeanMetric, Metric
from fitkit.metrics.standard import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    R2Score,
    TopKAccuracy,
)
from fitkit.nn_handler import NNHandler
from fitkit.runtime.world import on_rank
from fitkit.version import __version__

__all__ = [
    "EMA",
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
    "EarlyStopping",
    "Event",
    "FitState",
    "FitkitError",
    "GradientAccumulationScheduler",
    "History",
    "JSONLinesLogger",
    "LambdaCallback",
    "LearningRateMonitor",
    "LearningRateScheduler",
    "LoggingMode",
    "Logs",
    "MeanAbsoluteError",
    "MeanMetric",
    "MeanSquaredError",
    "Metric",
    "ModelCheckpoint",
    "ModelType",
    "Monitor",
    "MonitorError",
    "NNHandler",
    "Preempted",
    "ProgressBar",
    "R2Score",
    "RankError",
    "ReduceLROnPlateau",
    "Retention",
    "SamplingError",
    "SaveError",
    "StepOutput",
    "TerminateOnNaN",
    "ThroughputMonitor",
    "Timer",
    "TopKAccuracy",
    "UnsafeCheckpointError",
    "__version__",
    "on_rank",
]
