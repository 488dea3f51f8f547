"""Weights of every kind of file, and whether they fit a model; more in test_loading.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import CheckpointError, DamagedCheckpointError, NNHandler
from fitkit.checkpointing.read_weights import check_weights, read_state, read_weights


def make_state(**changes):
    handler = NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    return {**handler.get_state_dict(), **changes}


def stored(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    return tmp_path / "m.pth"


WEIGHTS = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
AVERAGED = {"weight": torch.full((1, 2), 5.0)}


@pytest.mark.parametrize(
    "content", [WEIGHTS, {"model_state_dict": WEIGHTS, "note": "mine"}], ids=["bare", "nested"]
)
def test_a_file_of_weights(tmp_path, content):
    path = stored(tmp_path, content)
    found = read_weights(path)
    assert list(found) == ["weight", "bias"]
    assert torch.equal(found["weight"], WEIGHTS["weight"])
    with pytest.raises(CheckpointError):
        read_state(path)


def test_averaged_weights_replace_those_of_their_name(tmp_path):
    path = stored(
        tmp_path, make_state(model_state_dict=WEIGHTS, ema_state_dict={"weights": AVERAGED})
    )
    assert read_weights(path)["weight"].tolist() == [[5.0, 5.0]]
    assert read_weights(path)["bias"].tolist() == [0.0]
    assert read_weights(path, averaged=False)["weight"].tolist() == [[1.0, 1.0]]
    assert read_state(str(path))["ema_state_dict"]["weights"]["weight"][0, 0] == 5


@pytest.mark.parametrize("averaged", [None, [AVERAGED], 3])
def test_averaged_weights_that_cannot_be_read(tmp_path, averaged):
    path = stored(tmp_path, make_state(ema_state_dict={"weights": averaged}))
    with pytest.raises(DamagedCheckpointError, match=r"averaged weights in '.*m\.pth'"):
        read_weights(path)
    assert set(read_weights(path, averaged=False)) == {"weight", "bias"}


@pytest.mark.parametrize("content", [3, [], {}, {"weight": "text"}, {"model_state_dict": None}])
def test_a_file_without_weights(tmp_path, content):
    with pytest.raises(DamagedCheckpointError, match=r"m\.pth' holds no weights: expected"):
        read_weights(stored(tmp_path, content))


def test_weights_that_fit():
    check_weights(nn.Linear(2, 1), WEIGHTS, strict=True)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"weight": torch.ones(1, 2)}, "missing in the checkpoint: 'bias'"),
        ({**WEIGHTS, "b": WEIGHTS["bias"]}, "unknown to the model: 'b'"),
    ],
)
def test_names_count_if_strict(weights, sentence):
    with pytest.raises(CheckpointError, match=f"do not fit Linear: {sentence}"):
        check_weights(nn.Linear(2, 1), weights, strict=True)
    check_weights(nn.Linear(2, 1), weights, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_count_always_and_every_problem_is_told(strict):
    weights = {"weight": torch.ones(2, 1), "bias": torch.zeros(())}
    with pytest.raises(CheckpointError) as caught:
        check_weights(nn.Linear(2, 1), weights, strict=strict)
    assert "'weight' has shape (2, 1) in the checkpoint and (1, 2) in the model" in str(
        caught.value
    )
    assert "'bias' has shape ()" in str(caught.value)
