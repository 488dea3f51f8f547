"""deterministic(): settings of torch, cuBLAS and NCCL for repeatable results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType

import torch
from torch import nn

from fitkit.core.errors import listed

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE_WORKSPACES = (":4096:8", ":16:8")  # the two that cuBLAS documents
_FLAGS = (
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
    (torch.utils.deterministic, "fill_uninitialized_memory", True),
)


class Determinism:
    """The applied settings for repeatable results; leaving a ``with`` block undoes them.

    ``str()`` of it shows both attributes, one entry per line.

    Attributes:
        settings: the value of each flag and environment variable after the call.
        remarks: one sentence for each source of differences that no setting covers here.
    """

    def __init__(
        self, settings: Mapping[str, bool | str], remarks: tuple[str, ...], undo: ExitStack
    ) -> None:
        self.settings = MappingProxyType(dict(settings))
        self.remarks = remarks
        self._undo = undo

    def __enter__(self) -> Determinism:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._undo.close()

    def __str__(self) -> str:
        lines = ["Set:", *(f"  {name} = {value}" for name, value in self.settings.items())]
        lines += ["No setting covers:", *(f"  - {remark}" for remark in self.remarks)]
        return "\n".join(lines)


def deterministic(*, warn_only: bool = False) -> Determinism:
    """Make results repeatable on this machine, and report what no setting covers.

    Call it at the top of a script, before the first CUDA operation and before the process group is
    created, in the first run and in every resume. Used in ``with``, it restores the previous
    settings at the end; cuBLAS and NCCL read their variables only once and keep the values.

    It turns on ``torch.use_deterministic_algorithms``, ``torch.backends.cudnn.deterministic`` and
    ``torch.utils.deterministic.fill_uninitialized_memory``, turns off
    ``torch.backends.cudnn.benchmark``, and sets ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` and, where
    torch is built for CUDA, ``NCCL_ALGO=^NVLS``. A variable that is already set keeps its value.
    The result is logged once, to the ``"fitkit"`` logger at INFO.

    Args:
        warn_only: an operation without a deterministic implementation warns instead of raising.

    Returns:
        the settings, and remarks on what they do not cover.

    Warns:
        UserWarning: on a machine with CUDA, ``CUBLAS_WORKSPACE_CONFIG`` has a value other than
            ``:4096:8`` or ``:16:8``, or CUDA was initialized before it was set.

    >>> with deterministic():
    ...     torch.are_deterministic_algorithms_enabled()
    True
    >>> torch.are_deterministic_algorithms_enabled()
    False
    """
    with ExitStack() as stack:
        problem = _workspace_problem()
        settings = _apply(stack, warn_only)
        if problem is not None:
            warnings.warn(problem, stacklevel=2)
        undo = stack.pop_all()
    remarks = ([] if problem is None else [problem]) + _remarks(warn_only)
    applied = Determinism(settings, tuple(remarks), undo)
    logging.getLogger("fitkit").info("%s", applied)
    return applied


def _apply(undo: ExitStack, warn_only: bool) -> dict[str, bool | str]:
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    settings: dict[str, bool | str] = {"torch.use_deterministic_algorithms": True}
    settings["warn_only"] = warn_only
    for owner, name, value in _FLAGS:
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)
        settings[f"{owner.__name__}.{name}"] = value
    variables = {_CUBLAS: _REPEATABLE_WORKSPACES[0]}
    if torch.version.cuda is not None:
        # torch sets this itself since its pull request 156381, because reductions inside the
        # switch (NVLS) are not repeatable. Forcing Ring would cost speed and is left to the user.
        variables["NCCL_ALGO"] = "^NVLS"
    for name, text in variables.items():
        if name not in os.environ:
            undo.callback(os.environ.pop, name, None)
            os.environ[name] = text
        settings[name] = os.environ[name]
    return settings


def _workspace_problem() -> str | None:
    value = os.environ.get(_CUBLAS)
    has_cuda = torch.version.cuda is not None and torch.cuda.is_available()
    if not has_cuda or value in _REPEATABLE_WORKSPACES:
        return None
    if value is not None:
        return (
            f"{_CUBLAS} is {value!r}, and cuBLAS documents repeatable results for "
            f"{listed(_REPEATABLE_WORKSPACES)} only: export one of them before the program starts, "
            f"or unset it."
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return (
            f"CUDA was initialized before {_CUBLAS} was set, and it is read only once: call "
            f"deterministic() before the first CUDA operation, or export {_CUBLAS}=:4096:8 before "
            f"the program starts."
        )
    return None


def _remarks(warn_only: bool) -> list[str]:
    """The remarks for this machine; found without initializing CUDA, which would break a fork."""
    remarks = [
        f"CPU: results can depend on the number of threads (torch.get_num_threads() is "
        f"{torch.get_num_threads()}) and on the instruction set "
        f"({torch.backends.cpu.get_cpu_capability()}): keep both."
    ]
    if warn_only:
        remarks.append(
            "warn_only: operations without a deterministic implementation run as usual; on CUDA "
            "the fused attention kernels are among them."
        )
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return remarks
    remarks += [
        f"{kind.type}: another model of the device, driver or version of torch (here "
        f"{torch.__version__}) can give other bits.",
        "Kernels of your own (CUDA, Triton, extensions): torch does not check them. Atomic "
        "additions of floats in them do not repeat themselves.",
    ]
    if kind.type != "cuda" or torch.version.cuda is None:
        remark = f"{kind.type}: torch lists deterministic operations of CPU and CUDA only."
        return [*remarks, remark]
    remarks += [
        f"TF32: not changed. {_matmul_precision()}. It repeats itself on one GPU model: keep the "
        f"setting, and that of convolutions (torch.backends.cudnn).",
        "NCCL: the number of ranks, the machines and the version of NCCL have to stay. Ring and "
        "Tree add in different orders and NCCL chooses between them: export NCCL_ALGO=Ring before "
        "the first run if two equal runs differ.",
    ]
    if _uses_cudnn():
        remarks.append(
            f"cuDNN {torch.backends.cudnn.version()}: another version can give other bits. "  # type: ignore[no-untyped-call]
            "Dropout between the layers of nn.LSTM, nn.GRU and nn.RNN is not exact after a resume: "
            "its random state is in no checkpoint."
        )
    return remarks


def _matmul_precision() -> str:
    try:
        return f"torch.get_float32_matmul_precision() is {torch.get_float32_matmul_precision()!r}"
    except RuntimeError:  # the program uses torch's newer setting
        precision = torch.backends.cuda.matmul.fp32_precision
        return f"torch.backends.cuda.matmul.fp32_precision is {precision!r}"


def _uses_cudnn() -> bool:
    return bool(torch.backends.cudnn.enabled and torch.backends.cudnn.is_available())  # type: ignore[no-untyped-call]


def rnn_dropout_remark(module: nn.Module, device: torch.device) -> str | None:
    """A warning if cuDNN draws dropout of ``module`` from a state that is in no checkpoint.

    That is dropout between the layers of ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` (``num_layers`` at
    least 2 and ``dropout`` above 0) on a CUDA device with cuDNN available and enabled.

    Source: torch, aten/src/ATen/native/cudnn/RNN.cpp, ``get_dropout_state``. Each process has one
    state per device. It is seeded from the device's generator at its first use, also after that
    generator was seeded or restored, and advances inside cuDNN.
    """
    if device.type != "cuda" or not _uses_cudnn():
        return None
    layers = [
        f"{name!r} ({type(part).__name__})" if name else type(part).__name__
        for name, part in module.named_modules()
        if isinstance(part, nn.RNNBase) and part.num_layers > 1 and part.dropout > 0
    ]
    if not layers:
        return None
    return (
        f"{', '.join(layers)}: after a resume inside the run dropout draws other masks, because "
        f"cuDNN keeps the random state of dropout between recurrent layers in the process. For an "
        f"exact resume use one layer each with nn.Dropout between them, or run it inside "
        f"torch.backends.cudnn.flags(enabled=False)."
    )
