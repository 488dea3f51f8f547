"""``fitkit inspect``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit.checkpointing.storage import safe_load

GOLDEN = Path(__file__).parents[1] / "checkpointing" / "golden"


def test_a_checkpoint_at_a_glance(cli):
    shown = cli("inspect", GOLDEN / "rich.pth").stdout
    assert max(map(len, shown.splitlines())) <= 100  # the path may be long
    for text in (
        "1 epoch done, then 1 batch of the next; step 5",
        "__main__:Net(width=4), classification",
        "torch.optim.adamw:AdamW(lr=0.05), lr now 0.044151",
        "CosineAnnealingLR(T_max=9), every step",
        "decay 0.8, 2 steps",
        "EarlyStopping      best=0.75616",
        "best_path='best.pth'",
    ):
        assert text in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["val_loss", "0.75616", "0.75616", "1"] in rows
    assert ["all", "8", "tensors", "mixed", "39", "160", "B"] in rows
    assert ["weight", "2", "x", "4", "float32", "8", "32", "B"] in rows


def test_the_same_for_programs(as_json):
    found = as_json("inspect", GOLDEN / "rich.pth")
    state = safe_load.read(GOLDEN / "rich.pth")
    assert found["kind"] == "checkpoint"
    assert found["progress"]["global_step"] == 5
    assert found["scores"]["val_loss"]["best"] == state["history"]["history"]["val_loss"][0]
    last = state["history"]["history"]["lr"][0]
    assert found["scores"]["lr"] == {"last": last, "best": None, "best_epoch": None}
    assert found["callbacks"]["Seen"]["total"] == {"shape": [2], "dtype": "float64"}
    assert found["callbacks"]["EarlyStopping"]["best_epoch"] == 0
    assert found["optimizer"]["lr"] == [found["scores"]["lr"]["last"]]
    total = found["weights"][0]
    weights = state["model_state_dict"].values()
    assert total["num_values"] == sum(one.numel() for one in weights)
    assert total["size_bytes"] == sum(one.nbytes for one in weights)
    named = {one["name"]: one["shape"] for one in found["weights"] if one["shape"] is not None}
    assert named == {name: list(one.shape) for name, one in state["model_state_dict"].items()}


def test_the_best_epoch_is_that_of_the_best_value(as_json, run):
    found = as_json("inspect", run / "best.pth")
    values = safe_load.read(run / "best.pth")["history"]["history"]
    best = found["scores"]["val_loss"]
    assert best["best"] == min(values["val_loss"])
    assert best["best_epoch"] == 1 + values["val_loss"].index(min(values["val_loss"]))
    assert found["scores"]["accuracy"]["best"] == max(values["accuracy"])


def test_nothing_but_numbers_that_json_has(as_json, run):
    path = run / "best.pth"
    state = torch.load(path, weights_only=True)
    state["history"]["history"]["val_loss"][-1] = float("nan")
    state["history"]["history"]["loss"] = [float("inf")] * 4
    torch.save(state, path)
    scores = as_json("inspect", path)["scores"]
    assert scores["val_loss"]["last"] is None
    assert scores["val_loss"]["best_epoch"] == 3
    assert scores["loss"] == {"last": None, "best": None, "best_epoch": None}


def test_weights_alone(cli, as_json, run):
    shown = cli("inspect", run / "weights.pth").stdout
    assert "weights only" in shown
    assert "2 x 3" in shown
    assert as_json("inspect", run / "weights.pth")["weights"][0]["num_tensors"] == 2


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ([1, 2], ["no checkpoint", "a list"]),
        ({"epoch": 3, "model_state_dict": {"a.w": torch.ones(2)}}, ["epoch", "int 3", "a", "w"]),
        ({"x": {"y": torch.ones(2, 3)}, 5: "text"}, ["<1 tensor, 24 B>", "'text'"]),
        (torch.ones(2), ["a Tensor"]),
    ],
)
def test_files_of_other_programs(cli, as_json, tmp_path, content, texts):
    torch.save(content, tmp_path / "other.pt")
    shown = cli("inspect", tmp_path / "other.pt").stdout
    assert all(text in shown for text in texts)
    assert as_json("inspect", tmp_path / "other.pt")["kind"] == "other"


def test_depth(cli, as_json, tmp_path):
    layers = {f"layers.{n}.{k}.weight": torch.ones(2) for n in range(30) for k in "abc"}
    torch.save(layers, tmp_path / "big.pth")
    shown = cli("inspect", tmp_path / "big.pth").stdout.splitlines()
    assert len(shown) < 50
    assert any(line.split()[:3] == ["29", "3", "tensors"] for line in shown)
    assert len(as_json("inspect", tmp_path / "big.pth")["weights"]) == 2 + 30 + 90 + 90
    assert len(as_json("inspect", tmp_path / "big.pth", "--depth", "1")["weights"]) == 2
    assert (
        "layers" not in cli("inspect", tmp_path / "big.pth", "--depth", "0").stdout.split("all")[1]
    )
    cli("inspect", tmp_path / "big.pth", "--depth", "-1", code=2)


def test_code(cli, tmp_path, run):
    handler = fitkit.NNHandler(nn.Linear, in_features=1, out_features=1, save_model_code=True)
    handler.save(tmp_path / "coded.pth")
    assert "class Linear" not in cli("inspect", tmp_path / "coded.pth").stdout
    assert "class Linear" in cli("inspect", tmp_path / "coded.pth", "--code").stdout
    assert "not stored" in cli("inspect", run / "best.pth", "--code").stdout


def test_a_new_handler_has_little_to_tell(cli, tmp_path):
    fitkit.NNHandler(nn.Linear(1, 1)).save(tmp_path / "new.pth")
    shown = cli("inspect", tmp_path / "new.pth").stdout
    assert "0 epochs done; step 0" in shown
    parts = {"scores", "callbacks", "optimizer", "averaging"}
    assert not parts & {line.split(" ")[0] for line in shown.splitlines()}


def test_tensors_are_not_read(cli, run, damage):
    damage(run / "best.pth")
    cli("inspect", run / "best.pth")
    cli("verify", run / "best.pth", code=1)
