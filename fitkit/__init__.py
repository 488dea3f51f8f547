"""fitkit: training in PyTorch, callback first, resumable exactly.

>>> import fitkit
>>> fitkit.NNHandler.__name__
'NNHandler'
"""

from fitkit.callbacks.ema import EMA
from fitkit.callbacks.saving import ModelCheckpoint
from fitkit.checkpointing.autosaver import AutoSaver
from fitkit.core.callback import Callback
from fitkit.core.callback_list import CallbackList, Event
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
    FitkitError,
    MonitorError,
    Preempted,
    SaveError,
    UnsafeCheckpointError,
)
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
from fitkit.version import __version__
