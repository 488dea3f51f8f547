"""Metadata: what a checkpoint is, told from its structure alone."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from fitkit.checkpointing.loading import Metadata, read_metadata
from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.core.tree import iterate_tensors


class Kept(fitkit.Callback):
    state_fields = ("count", "array", "tensor")

    def __init__(self):
        self.count, self.array, self.tensor = 0, np.arange(3), torch.ones(4)

    def on_train_batch_end(self, batch, logs):
        self.count += 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A handler in the middle of its third epoch, and its file."""
    path = tmp_path_factory.mktemp("made") / "a.pth"
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    data = (torch.ones(8, 2), torch.ones(8, 1))

    class Saves(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            if self.handler.state.global_step == 9:
                self.handler.save(path)

    handler.fit(
        data, epochs=3, batch_size=2, validation_data=data, callbacks=[Kept(), Saves()],
        progress_bar=False,
    )  # fmt: skip
    return handler, path


def test_what_it_says(made):
    handler, path = made
    found = read_metadata(str(path))
    assert isinstance(found, Metadata)
    assert found.path == path
    assert found.size_bytes == path.stat().st_size
    assert (found.format_version, found.fitkit_version) == (1, fitkit.__version__)
    assert found.pytorch_version == torch.__version__
    assert (found.epoch, found.batch, found.global_step) == (2, 1, 9)
    expected = {name: values[1] for name, values in handler.history.history.items()}
    assert found.metrics == expected
    assert found.callbacks["Kept"]["count"] == 9


def test_no_tensor_has_values(made):
    tensors = list(iterate_tensors(read_metadata(made[1]).state))
    assert len(tensors) > 5
    assert all(tensor.is_meta for tensor in tensors)
    full = safe_load.read(made[1])
    assert [one.shape for one in tensors] == [one.shape for one in iterate_tensors(full)]
    assert [one.dtype for one in tensors] == [one.dtype for one in iterate_tensors(full)]


def test_damage_among_the_tensors_does_not_matter_but_is_found_by_verify(made, tmp_path):
    handler, path = made
    data = bytearray(path.read_bytes())
    moments = next(iter(handler.optimizer.state.values()))["exp_avg_sq"]
    weight = safe_load.read(path)["model_state_dict"]["weight"]
    data[data.index(weight.numpy().tobytes())] ^= 1
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(data)
    assert moments.shape == weight.shape
    assert read_metadata(damaged).global_step == 9
    with pytest.raises(DamagedCheckpointError):
        safe_load.verify(damaged)
    with pytest.raises(DamagedCheckpointError):
        fitkit.NNHandler.load(damaged)


def test_damage_to_the_structure_is_found(made, tmp_path):
    data = bytearray(made[1].read_bytes())
    data[data.index(b"global_step")] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        read_metadata(tmp_path / "a.pth")


def test_before_the_first_epoch_there_are_no_metrics(tmp_path):
    fitkit.NNHandler(nn.Linear(1, 1)).save(tmp_path / "a.pth")
    found = read_metadata(tmp_path / "a.pth")
    assert (found.metrics, found.callbacks) == ({}, {})
    assert (found.epoch, found.batch, found.global_step) == (0, 0, 0)


def test_places_compare_as_in_the_run(made, tmp_path):
    handler, path = made
    handler.save(tmp_path / "later.pth")
    assert read_metadata(path).position < read_metadata(tmp_path / "later.pth").position


def test_what_is_no_whole_checkpoint(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        read_metadata(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_metadata(tmp_path)
    atomic_write.write({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds weights only"):
        read_metadata(tmp_path / "weights.pth")
    atomic_write.write({"a": 1}, tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpointError, match="not a checkpoint of fitkit"):
        read_metadata(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("history", {}),
        ("history", {"history": 3}),
        ("history", {"history": {"loss": 3}}),
        ("history", {"history": {"loss": {"a": 1}}}),
        ("history", {"history": [1]}),
        ("history", {"history": {"loss": torch.ones(3)}}),
        ("history", {"__fitkit__": "x"}),
        ("history", {"__fitkit__": "ndarray", "data": torch.ones(2), "dtype": "float32"}),
        ("callback_states", {"A": 3}),
        ("callback_states", {"A": {}}),
        ("callback_states", {3: {"state": 1, "name": "A", "identity": ""}}),
        ("progress", {"state": {}}),
        ("progress", {"state": 3}),
        ("progress", {"state": torch.ones(2, 2)}),
    ],
)
def test_hostile_structures_end_in_our_errors_or_are_told(made, tmp_path, key, value):
    torch.save({**safe_load.read(made[1]), key: value}, tmp_path / "a.pth")
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(name, str) for name in read_metadata(tmp_path / "a.pth").metrics)


def test_values_that_are_not_numbers_are_told(made, tmp_path):
    state = safe_load.read(made[1])
    state["history"]["history"]["loss"][-1] = math.nan
    atomic_write.write(state, tmp_path / "a.pth")
    assert math.isnan(read_metadata(tmp_path / "a.pth").metrics["loss"])


def test_the_rest_is_read_when_it_is_asked_for_and_only_of_the_same_file(made, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(made[1].read_bytes())
    found, other = read_metadata(path), read_metadata(path)
    assert found == other
    assert found.state is found.state
    path.unlink()
    path.write_bytes(made[1].read_bytes())
    assert found.state["seed"] == 0, "it has been read"
    with pytest.raises(CheckpointError, match="was replaced after its metadata was read"):
        other.callbacks  # noqa: B018
    path.unlink()
    with pytest.raises(CheckpointNotFoundError):
        other.state  # noqa: B018


def test_values_behind_what_is_listed_are_checked_when_they_are_asked_for(made, tmp_path):
    torch.save({**safe_load.read(made[1]), "rng": 3}, tmp_path / "a.pth")
    found = read_metadata(tmp_path / "a.pth")
    assert found.global_step == 9
    with pytest.raises(DamagedCheckpointError, match="'rng' missing or of a wrong type"):
        found.state  # noqa: B018
