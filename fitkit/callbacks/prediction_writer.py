"""PredictionWriter: the outputs of a prediction on disk, batch by batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import CheckpointError, ConfigurationError, DataError
from fitkit.core.logs import Logs


class PredictionWriter(BuiltinCallback):
    """Writes the outputs of each predicted batch to a file of its own, so memory use is constant.

    Rank ``r`` writes ``batch_000000_rank_00r.pt``, ... with atomic writes, and at the end of the
    prediction ``rank_00r.pt``, which lists them; until then ``read`` refuses the folder. On several
    machines the folder must be shared. Mappings and dataclasses are written as dicts.

    Args:
        folder: where to write; it is created.
        overwrite: replace an earlier prediction in the folder, which is refused by default.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Raises:
        ConfigurationError: when a prediction begins, if the folder holds another one.
        DataError: the outputs hold something other than tensors and plain types.
        SaveError: a file could not be written.

    >>> import tempfile, torch, fitkit
    >>> folder = tempfile.mkdtemp()
    >>> handler = fitkit.NNHandler(torch.nn.Linear, in_features=2, out_features=1)
    >>> writer = fitkit.PredictionWriter(folder)
    >>> handler.predict(torch.ones(5, 2), batch_size=2, callbacks=[writer], return_outputs=False)
    >>> torch.cat(list(fitkit.PredictionWriter.read(folder))).shape
    torch.Size([5, 1])
    """

    needs_all_ranks = False
    writes_files = True

    def __init__(
        self, folder: str | os.PathLike[str], overwrite: bool = False, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.folder = Path(folder)
        self.overwrite = overwrite
        self._batches: list[int] = []

    def on_predict_begin(self, logs: Logs) -> None:
        """Begin with an empty folder; each rank looks after its own files, so none waits."""
        rank = self.handler.world.rank
        files = [_index_file(self.folder, rank), *self.folder.glob(_batch_name("*", rank))]
        earlier = [file for file in files if file.exists()]
        if earlier and not self.overwrite:
            raise ConfigurationError(
                f"{str(self.folder)!r} already holds a prediction ({earlier[0].name}): choose "
                f"another folder, or pass overwrite=True."
            )
        for file in earlier:  # the list of its files first: what is left is no whole prediction
            file.unlink()
        self._batches = []

    def on_predict_outputs(self, batch: int, outputs: Any) -> None:
        """Write the outputs of a batch."""
        try:
            content = encode(_as_plain(outputs), "the model's output")
        except CheckpointError as error:
            raise DataError(f"{error} Or leave it out with predict(tensors_only=True).") from None
        rank = self.handler.world.rank
        atomic_write.write({"outputs": content}, self.folder / _batch_name(f"{batch:06d}", rank))
        self._batches.append(batch)

    def on_predict_end(self, logs: Logs) -> None:
        """List the files of this rank, unless its caller ended ``predict_batches`` early."""
        if "ended_early" in logs:
            return
        world = self.handler.world
        index = {"batches": self._batches, "ranks": world.size}
        atomic_write.write(index, _index_file(self.folder, world.rank))

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> Iterator[Any]:
        """Yield the outputs in ``folder`` batch by batch, in the order of the data.

        Raises:
            CheckpointError: the prediction is not complete, or a file cannot be read.
        """
        path = Path(folder)
        first = _read_index(path, 0)
        indices = [first, *(_read_index(path, rank) for rank in range(1, first["ranks"]))]
        if any(index["ranks"] != len(indices) for index in indices):
            raise CheckpointError(
                f"{str(path)!r} has files of predictions with another number of ranks: predict "
                f"again into an empty folder."
            )
        pairs = [(batch, rank) for rank, index in enumerate(indices) for batch in index["batches"]]
        for batch, rank in sorted(pairs):
            yield decode(safe_load.read(path / _batch_name(f"{batch:06d}", rank))["outputs"])


def _batch_name(batch: str, rank: int) -> str:
    return f"batch_{batch}_rank_{rank:03d}.pt"


def _index_file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:03d}.pt"


def _read_index(folder: Path, rank: int) -> dict[str, Any]:
    file = _index_file(folder, rank)
    if not file.exists():
        raise CheckpointError(
            f"{str(folder)!r} holds no complete prediction: {file.name} is missing, which rank "
            f"{rank} writes at the end. Predict again."
        )
    index: dict[str, Any] = safe_load.read(file)
    return index


def _as_plain(outputs: Any) -> Any:
    """Mappings and dataclasses as dicts, whose classes a file cannot hold."""
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, (type, Mapping)):
        outputs = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    if isinstance(outputs, Mapping):
        return {key: _as_plain(value) for key, value in outputs.items()}
    if type(outputs) in (list, tuple):
        return type(outputs)([_as_plain(value) for value in outputs])
    return outputs
