"""Weights written for other programs: as a state dict, and as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fitkit.checkpointing import files
from fitkit.checkpointing.loading import read_weights
from fitkit.checkpointing.plain import to_plain
from fitkit.core.errors import CheckpointError, listed, missing_package


def export_state_dict(weights: Mapping[str, Any], path: Path) -> None:
    """Write weights as a file that ``torch.load(path, weights_only=True)`` reads.

    Raises:
        SaveError: it could not be written.
    """
    files.write(to_plain(weights), path)


def export_safetensors(
    weights: Mapping[str, Any], path: Path, tied: Mapping[str, str] | None = None
) -> list[str]:
    """Write weights as safetensors.

    Args:
        weights: a state dict.
        path: the file; its folder is made.
        tied: names that stand for others, as ``tied_names`` finds them: they are left out, and the
            file's header says what they are, so that ``safetensors.torch.load_model`` takes it.

    Returns:
        names that such a file cannot hold: the extra state of modules.

    Raises:
        CheckpointError: a tensor is sparse.
        ConfigurationError: safetensors is not installed.
        SaveError: it could not be written.
    """
    to_bytes = _safetensors_writer()
    tied = tied or {}
    tensors = {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(value, Tensor) and name not in tied
    }
    sparse = [name for name, tensor in tensors.items() if str(tensor.layout) != "torch.strided"]
    if sparse:
        raise CheckpointError(f"safetensors cannot hold the sparse {listed(sparse)}.")
    separate = _without_shared_memory(tensors)
    content = to_bytes(separate, metadata={"format": "pt", **tied})

    def fill(file: BinaryIO) -> None:
        file.write(content)

    files.replace(path, fill)
    return [name for name, value in weights.items() if not isinstance(value, Tensor)]


def _safetensors_writer() -> Callable[..., bytes]:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise missing_package("the format safetensors", "safetensors") from error
    return save


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of their own: two views of one memory cannot be written as such."""
    known: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        is_part = tensor.nbytes != tensor.untyped_storage().nbytes()
        plain = tensor.clone() if memory in known or is_part else tensor
        separate[name] = plain.contiguous()
        known.add(memory)
    return separate


def tied_names(path: Path, weights: Mapping[str, Any]) -> dict[str, str]:
    """The names in a file that stand for the tensor of another name, and of which.

    Args:
        path: where the weights are from; in it, tied ones are one piece of memory.
        weights: those that are to be written, the averaged ones, say.

    Raises:
        CheckpointError: the file cannot be used.
    """
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in read_weights(path, averaged=False).items():
        if isinstance(tensor, Tensor) and str(tensor.layout) == "torch.strided" and tensor.numel():
            view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            kept = first.setdefault(view, name)
            if kept != name and weights[kept].equal(weights[name]):
                tied[name] = kept
    return tied
