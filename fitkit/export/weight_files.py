"""Export weights as a state dict or as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing.format.encoding import encode
from fitkit.checkpointing.read_weights import read_weights
from fitkit.checkpointing.storage import atomic_write
from fitkit.core.errors import CheckpointError, listed, missing_package


def export_state_dict(weights: Mapping[str, Any], path: Path) -> None:
    """Write weights as a file that ``torch.load(path, weights_only=True)`` reads.

    Raises:
        SaveError: it could not be written.
    """
    atomic_write.write(encode(weights), path)


def export_safetensors(
    weights: Mapping[str, Any], path: Path, tied: Mapping[str, str] | None = None
) -> list[str]:
    """Write weights as safetensors.

    Args:
        weights: a state dict.
        path: the file; its folder is created.
        tied: names of tied weights, from ``tied_names``: they are left out, and the header names
            the weights that they are tied to, for ``safetensors.torch.load_model``.

    Returns:
        names that were left out because they are no tensors: the extra state of modules.

    Raises:
        CheckpointError: a tensor is sparse.
        ConfigurationError: safetensors is not installed.
        SaveError: it could not be written.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise missing_package("the format safetensors", "safetensors") from error
    tied = tied or {}
    tensors = {
        name: value.detach()
        for name, value in weights.items()
        if isinstance(value, Tensor) and name not in tied
    }
    sparse = [name for name, tensor in tensors.items() if str(tensor.layout) != "torch.strided"]
    if sparse:
        raise CheckpointError(
            f"safetensors cannot hold the sparse {listed(sparse)}: export a state dict instead."
        )
    content = save(_without_shared_memory(tensors), metadata={"format": "pt", **tied})
    atomic_write.replace(path, lambda file: file.write(content))
    return [name for name, value in weights.items() if not isinstance(value, Tensor)]


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, none of which shares memory with another: safetensors refuses such views."""
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
    """The names of tied weights in a file, where they share memory, with the first name of each.

    ``weights`` are those to be written, such as the averaged ones, which must be equal too.

    Raises:
        CheckpointError: the file cannot be used.
    """
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in read_weights(path, averaged=False).items():
        if isinstance(tensor, Tensor) and str(tensor.layout) == "torch.strided" and tensor.numel():
            view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            first_name = first.setdefault(view, name)
            if first_name != name and weights[first_name].equal(weights[name]):
                tied[name] = first_name
    return tied
