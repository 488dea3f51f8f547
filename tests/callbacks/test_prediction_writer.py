"""PredictionWriter: files batch by batch, read back in the order of the data."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from fitkit import (
    CheckpointError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
    NNHandler,
    PredictionWriter,
)
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.testing import differences

X = torch.arange(14.0).reshape(7, 2)
read = PredictionWriter.read


@pytest.fixture
def handler():
    return NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)


def write(handler, folder, *others, **options):
    writer = PredictionWriter(folder, **options)
    handler.predict(X, batch_size=3, callbacks=[writer, *others], return_outputs=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_outputs_are_read_as_they_were(handler, tmp_path):
    write(handler, tmp_path / "new" / "folder")
    batches = list(read(tmp_path / "new" / "folder"))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), handler.predict(X, batch_size=3))
    assert names(tmp_path / "new" / "folder") == [
        "batch_000000_rank_000.pt",
        "batch_000001_rank_000.pt",
        "batch_000002_rank_000.pt",
        "rank_000.pt",
    ]


def test_files_hold_only_what_torch_loads_safely(handler, tmp_path):
    write(handler, tmp_path)
    for path in tmp_path.iterdir():
        torch.load(path, weights_only=True)


@dataclass
class Named(OrderedDict):
    logits: Any = None

    def __post_init__(self):
        self["logits"] = self.logits


@dataclass
class Fields:
    mean: Any


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: (x, {"a": [x]}), lambda x: (x, {"a": [x]})),
        (lambda x: Named(x), lambda x: {"logits": x}),
        (lambda x: Fields({"a": x}), lambda x: {"mean": {"a": x}}),
        (lambda x: [str(v) for v in x], lambda x: [str(v) for v in x]),
        (
            lambda x: [{"boxes": v, "label": "a"} for v in x],
            lambda x: [{"boxes": v, "label": "a"} for v in x],
        ),
        (lambda x: (x, None, 1.5), lambda x: (x, None, 1.5)),
    ],
)
def test_nested_outputs(handler, tmp_path, make, expected):
    handler.set_predict_step(lambda handler, batch: make(batch))
    write(handler, tmp_path)
    found = list(read(tmp_path))
    assert type(found[0]) is type(expected(X))
    assert not list(differences(found, [expected(part) for part in X.split(3)]))


def test_it_hears_predict_batches_too(handler, tmp_path):
    for batch in handler.predict_batches(X, batch_size=3, callbacks=[PredictionWriter(tmp_path)]):
        if batch.shape[0] == 3:
            with pytest.raises(CheckpointError, match="no complete prediction: rank_000"):
                next(read(tmp_path))
    assert torch.equal(torch.cat(list(read(tmp_path))), handler.predict(X))


def test_a_prediction_that_the_caller_ended_early_is_not_read(handler, tmp_path):
    next(handler.predict_batches(X, batch_size=3, callbacks=[PredictionWriter(tmp_path)]))
    assert (tmp_path / "batch_000000_rank_000.pt").exists()
    with pytest.raises(CheckpointError, match="holds no complete prediction"):
        list(read(tmp_path))


class BoomError(Exception):
    pass


def boom(*args):
    raise BoomError


def test_an_interrupted_prediction_is_not_read(handler, tmp_path):
    with pytest.raises(BoomError):
        write(handler, tmp_path, LambdaCallback(on_predict_batch_end=boom))
    with pytest.raises(CheckpointError, match=r"no complete prediction: rank_000\.pt is missing"):
        next(read(tmp_path))


def test_an_earlier_prediction_is_not_overwritten_unasked(handler, tmp_path):
    write(handler, tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ConfigurationError, match=r"holds a prediction \(rank_000\.pt\).*overw"):
        write(handler, tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_so_is_an_interrupted_one(handler, tmp_path):
    with pytest.raises(BoomError):
        write(handler, tmp_path, LambdaCallback(on_predict_batch_end=boom))
    with pytest.raises(ConfigurationError, match=r"already holds .*batch_000000_rank_000\.pt"):
        write(handler, tmp_path)


def test_overwriting_leaves_nothing_of_a_longer_one(handler, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(handler, tmp_path)
    writer = PredictionWriter(tmp_path, overwrite=True)
    handler.predict(X[:2], callbacks=[writer], return_outputs=False)
    assert torch.equal(torch.cat(list(read(tmp_path))), handler.predict(X[:2]))
    assert names(tmp_path) == ["batch_000000_rank_000.pt", "notes.txt", "rank_000.pt"]


def test_an_overwritten_one_that_fails_is_not_read_as_the_earlier(handler, tmp_path):
    write(handler, tmp_path)
    with pytest.raises(BoomError):
        write(handler, tmp_path, LambdaCallback(on_predict_begin=boom), overwrite=True)
    with pytest.raises(CheckpointError, match="no complete prediction"):
        next(read(tmp_path))


def test_what_cannot_be_written_is_named(handler, tmp_path):
    handler.set_predict_step(lambda handler, batch: {"y": batch, "cache": [object()]})
    with pytest.raises(DataError, match=r"output\['cache'\]\[0\].*object.*predict\(tensors_only"):
        write(handler, tmp_path)
    writer = PredictionWriter(tmp_path / "b")
    handler.predict(X, callbacks=[writer], return_outputs=False, tensors_only=True)
    assert torch.equal(next(read(tmp_path / "b"))["y"], X)


def test_a_damaged_file_is_not_read(handler, tmp_path):
    write(handler, tmp_path)
    path = tmp_path / "batch_000001_rank_000.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedCheckpointError):
        list(read(tmp_path))


def test_a_folder_without_a_prediction_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no complete prediction"):
        list(read(tmp_path / "none"))


class Rank:
    """A place among two ranks, without any communication."""

    def __init__(self, rank, size=2):
        self.rank, self.size, self.is_main = rank, size, rank == 0


def write_as(rank, folder, batches, size=2):
    writer = PredictionWriter(folder)
    writer.handler = type("Handler", (), {"world": Rank(rank, size)})
    writer.on_predict_begin({})
    for batch, outputs in batches.items():
        writer.on_predict_outputs(batch, outputs)
    writer.on_predict_end({})


def test_files_of_several_ranks_are_read_in_the_order_of_the_data(tmp_path):
    write_as(1, tmp_path, {0: torch.tensor([2.0, 3.0])})
    with pytest.raises(CheckpointError, match=r"rank_000\.pt is missing, which rank 0 writes"):
        next(read(tmp_path))
    write_as(0, tmp_path, {0: torch.tensor([0.0, 1.0]), 1: torch.tensor([4.0])})
    assert torch.cat(list(read(tmp_path))).tolist() == [0, 1, 2, 3, 4]


def test_predictions_of_other_numbers_of_ranks_are_not_mixed(tmp_path):
    write_as(0, tmp_path, {0: X}, size=2)
    write_as(1, tmp_path, {0: X}, size=3)
    with pytest.raises(CheckpointError, match="another number of ranks"):
        list(read(tmp_path))
