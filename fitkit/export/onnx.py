"""Export a model as ONNX, with the weights of a checkpoint."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.checkpointing.bounded_build import bounded_build
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.component_config import as_build_error, decode_kwargs
from fitkit.checkpointing.read_weights import check_weights
from fitkit.checkpointing.storage import atomic_write, single_or_sharded
from fitkit.core.errors import (
    CheckpointError,
    ConfigurationError,
    as_checkpoint_error,
    missing_package,
)

_EXAMPLE_SIZE = 2  # of a dynamic dimension; the exporter treats 1 as a constant


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        sizes: the size of each dimension, or a name for a dynamic one.
        dtype: the type of its elements.
    """

    sizes: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Parse the short form of an input.

        Raises:
            ConfigurationError: ``text`` is not one.

        >>> InputSpec.parse("batch,128:int64")
        InputSpec(sizes=('batch', 128), dtype=torch.int64)
        """
        sizes, _, name = text.partition(":")
        dtype = getattr(torch, name or "float32", None)
        parts = [part.strip() for part in sizes.split(",")]
        fits = all(part.isidentifier() or (part.isdecimal() and int(part)) for part in parts)
        if not fits or not isinstance(dtype, torch.dtype):
            raise ConfigurationError(
                f"an input must be sizes or names of its dimensions, and a dtype of torch where it "
                f"is not float32, such as '1,1,28,28' or 'batch,128:int64'; received {text!r}."
            )
        return cls(tuple(int(part) if part.isdecimal() else part for part in parts), dtype)

    def example(self) -> Tensor:
        """An input of zeros."""
        sizes = [size if isinstance(size, int) else _EXAMPLE_SIZE for size in self.sizes]
        return torch.zeros(sizes, dtype=self.dtype)

    def dynamic_shapes(self, dims: dict[str, Any]) -> dict[int, Any]:
        """Its named dimensions for ``torch.export``; a model's inputs share ``dims``."""
        named = {n: size for n, size in enumerate(self.sizes) if isinstance(size, str)}
        return {n: dims.setdefault(name, torch.export.Dim(name)) for n, name in named.items()}


def import_model(reference: str) -> Any:
    """Import the class or ready module called ``"module:name"``.

    Raises:
        ConfigurationError: it cannot be imported, or is no ``torch.nn.Module``.
    """
    module_name, _, name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for ``python -m``
    try:
        model: Any = importlib.import_module(module_name)
        for part in name.split("."):
            model = getattr(model, part)
    except Exception as error:  # the user's module may raise anything
        raise ConfigurationError(
            f"the model must be 'module:Class', importable from here; {reference!r} is not: "
            f"{type(error).__name__}: {error}."
        ) from error
    is_class = isinstance(model, type) and issubclass(model, nn.Module)
    if not is_class and not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"{reference!r} is a {type(model).__name__}, no torch.nn.Module: name a class of "
            f"modules or a ready module."
        )
    return model


def build_model(model: Any, path: Path, weights: Mapping[str, Any]) -> nn.Module:
    """The model in evaluation mode, with the given weights.

    A class is built with the arguments in the checkpoint ``path``; with none if that has only
    weights.

    Raises:
        CheckpointError: the model cannot be built, or the weights do not fit it.
    """
    if isinstance(model, type):
        state = single_or_sharded.read_without_tensors(path)
        kwargs = (
            decode_kwargs(schema.validate(state, path), "model") if schema.is_full(state) else {}
        )
        remedy = "name a ready module instead of a class"
        with bounded_build(weights), as_build_error("model", remedy):
            model = model(**kwargs)
    check_weights(model, weights, strict=True)
    with as_checkpoint_error():
        model.load_state_dict(weights)
    built: nn.Module = model.eval()
    return built


def export_onnx(model: nn.Module, inputs: Sequence[InputSpec], path: Path) -> None:
    """Write a model in evaluation mode as ONNX; the folder is created if it is missing.

    Raises:
        ConfigurationError: onnxscript is not installed, or there are no inputs.
        CheckpointError: torch cannot export the model.
        SaveError: it could not be written.
    """
    if not inputs:
        raise ConfigurationError(
            "ONNX needs the shapes of the model's inputs, received none: pass at least one."
        )
    content = _serialized(model, inputs)
    atomic_write.replace(path, lambda file: file.write(content))


def _serialized(model: nn.Module, inputs: Sequence[InputSpec]) -> bytes:
    try:
        import onnxscript  # noqa: F401  torch's own error is less clear
    except ImportError as error:
        raise missing_package("the format ONNX", "onnx", "onnxscript") from error
    export: Any = torch.onnx.export
    dims: dict[str, Any] = {}
    shapes = tuple(spec.dynamic_shapes(dims) for spec in inputs)
    try:
        with _silence(), torch.no_grad():
            program = export(
                model,
                tuple(spec.example() for spec in inputs),
                dynamo=True,
                dynamic_shapes=shapes if dims else None,
                verbose=False,
            )
        content: bytes = program.model_proto.SerializeToString()
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps the error of the model
            cause = cause.__cause__
        message = str(cause).strip().splitlines() or [type(cause).__name__]
        raise CheckpointError(
            f"torch cannot export this model as ONNX with these inputs: {message[0].rstrip('.')}."
        ) from error
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Inside ``with`` the exporter logs and warns nothing, as about packages that are missing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
