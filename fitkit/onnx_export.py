"""A model written as ONNX, with the weights of a checkpoint."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from fitkit.checkpointing import checkpoint, files, schema
from fitkit.core.errors import CheckpointError, ConfigurationError, missing_package
from fitkit.description import build_kwargs, rebuilding
from fitkit.snapshot import check_weights, told_as_checkpoint_error

_EXAMPLE_SIZE = 2  # of a dimension that may have any; the exporter takes 1 for a constant


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        sizes: of each dimension a number, or a name: it may then have any size.
        dtype: the type of its elements.
    """

    sizes: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """An input from its short form.

        Raises:
            ConfigurationError: it is none.

        >>> InputSpec.parse("batch,128:int64")
        InputSpec(sizes=('batch', 128), dtype=torch.int64)
        """
        sizes, _, name = text.partition(":")
        dtype = getattr(torch, name or "float32", None)
        parts = [part.strip() for part in sizes.split(",")]
        fits = all(part.isidentifier() or (part.isdecimal() and int(part)) for part in parts)
        if not fits or not isinstance(dtype, torch.dtype):
            raise ConfigurationError(
                f"an input is given by sizes or names of its dimensions, and a type of torch if it "
                f"is not float32: '1,1,28,28', 'batch,128:int64'; received {text!r}."
            )
        return cls(tuple(int(part) if part.isdecimal() else part for part in parts), dtype)

    def example(self) -> Tensor:
        """An input of this kind."""
        sizes = [one if isinstance(one, int) else _EXAMPLE_SIZE for one in self.sizes]
        return torch.zeros(sizes, dtype=self.dtype)

    def dynamic_shapes(self, dims: dict[str, Any]) -> dict[int, Any]:
        """Its named dimensions for ``torch.export``; inputs share names by sharing ``dims``."""
        named = {n: one for n, one in enumerate(self.sizes) if isinstance(one, str)}
        return {n: dims.setdefault(name, torch.export.Dim(name)) for n, name in named.items()}


def import_model(reference: str) -> Any:
    """The class or module that a user names as ``"module:name"``; the module is imported.

    Raises:
        ConfigurationError: there is none, or it is no ``torch.nn.Module``.
    """
    module_name, _, name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` has it
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module says while it is imported
        raise ConfigurationError(
            f"the model must be 'module:Class', importable from here; {reference!r} is not: "
            f"{type(error).__name__}: {error}."
        ) from error
    is_class = isinstance(found, type) and issubclass(found, nn.Module)
    if not is_class and not isinstance(found, nn.Module):
        raise ConfigurationError(f"{reference!r} is a {type(found).__name__}, no torch.nn.Module.")
    return found


def build_model(model: Any, path: Path, weights: Mapping[str, Any]) -> nn.Module:
    """The model in evaluation mode, with these weights.

    Args:
        model: a ready module, or a class, which is called with the arguments that the checkpoint
            ``path`` tells; from a file of weights alone, with none.
        path: the file.
        weights: its weights.

    Raises:
        CheckpointError: the model cannot be built, or the weights do not fit it.
    """
    if isinstance(model, type):
        state = checkpoint.read_without_tensors(path)
        kwargs = (
            build_kwargs(schema.validate(state, path), "model") if schema.is_full(state) else {}
        )
        with rebuilding("model", "name a ready module instead of a class"):
            model = model(**kwargs)
    check_weights(model, weights, strict=True)
    with told_as_checkpoint_error():
        model.load_state_dict(weights)
    built: nn.Module = model.eval()
    return built


def export_onnx(model: nn.Module, inputs: Sequence[InputSpec], path: Path) -> None:
    """Write a model as ONNX, by way of ``torch.export``.

    Args:
        model: the model in evaluation mode.
        inputs: what its ``forward`` takes.
        path: the file; its folder is made.

    Raises:
        ConfigurationError: onnxscript is not installed, or there are no inputs.
        CheckpointError: torch cannot export the model.
        SaveError: it could not be written.
    """
    if not inputs:
        raise ConfigurationError("ONNX needs to know what the model takes: name its inputs.")
    content = _serialized(model, inputs)

    def fill(file: BinaryIO) -> None:
        file.write(content)

    files.replace(path, fill)


def _serialized(model: nn.Module, inputs: Sequence[InputSpec]) -> bytes:
    export = _exporter()
    dims: dict[str, Any] = {}
    shapes = tuple(one.dynamic_shapes(dims) for one in inputs)
    try:
        with _silence(), torch.no_grad():
            program = export(
                model,
                tuple(one.example() for one in inputs),
                dynamo=True,
                dynamic_shapes=shapes if dims else None,
                verbose=False,
            )
        content: bytes = program.model_proto.SerializeToString()
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps what it was told
            cause = cause.__cause__
        told = str(cause).strip().splitlines() or [type(cause).__name__]
        raise CheckpointError(
            f"torch cannot export this model as ONNX with these inputs: {told[0].rstrip('.')}."
        ) from error
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Inside ``with`` torch says nothing of its own use of torch, and of what is not installed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _exporter() -> Callable[..., Any]:
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise missing_package("the format ONNX", "onnx", "onnxscript") from error
    exporter: Callable[..., Any] = torch.onnx.export
    return exporter
