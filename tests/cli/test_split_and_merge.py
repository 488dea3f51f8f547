"""``fitkit split`` and ``fitkit merge``."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.checkpointing.format import schema


def test_the_usual_parts(cli, run):
    before = (run / "best.pth").read_bytes()
    shown = cli("split", run / "best.pth").stdout
    keys = ["model_state_dict", "optimizer_state_dict", "model_kwargs"]
    assert shown.splitlines() == [f"wrote {run / f'best_{key}.pth'}" for key in keys]
    weights = torch.load(run / "best_model_state_dict.pth", weights_only=True)
    assert set(weights) == {"weight", "bias"}
    assert (run / "best.pth").read_bytes() == before


def test_chosen_parts(as_json, cli, run):
    found = as_json("split", run / "best.pth", "--keys", "history", "--keys", "progress")
    assert found["written"] == [str(run / "best_history.pth"), str(run / "best_progress.pth")]
    assert (
        "Did you mean 'history'"
        in cli("split", run / "best.pth", "--keys", "histor", code=3).stderr
    )
    cli("split", run / "best.pth", "--keys", "../x", code=3)
    cli("split", run / "best.pth", "--keys", "seed", "--all", code=2)


def test_nothing_is_written_over_what_is_there(cli, run):
    (run / "best_model_kwargs.pth").write_text("mine")
    assert "--force" in cli("split", run / "best.pth", code=3).stderr
    assert not (run / "best_model_state_dict.pth").exists()
    cli("split", run / "best.pth", "--force")
    assert (run / "best_model_kwargs.pth").read_bytes() != b"mine"


def test_there_and_back(cli, run):
    cli("split", run / "best.pth", "--all")
    assert len(list(run.glob("best_*.pth"))) == len(schema.KEYS)
    assert "--force" in cli("merge", run / "best.pth", code=3).stderr
    cli("merge", run / "best.pth", "-o", run / "again.pth")
    cli("diff", run / "best.pth", run / "again.pth")
    os.remove(run / "best.pth")
    cli("merge", run / "best.pth")
    assert NNHandler.load(run / "best.pth").state.global_step == 16


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(
    "build",
    [
        lambda seed: NNHandler(nn.Linear(1, 1), seed=seed),
        lambda seed: NNHandler(nn.Linear, seed=seed, in_features=1, out_features=1),
        lambda seed: NNHandler(nn.Flatten, seed=seed),
    ],
    ids=["a ready module", "arguments", "no arguments"],
)
def test_the_model_s_arguments_come_back_as_they_were(cli, tmp_path, build, seed):
    build(seed).save(tmp_path / "m.pth")
    cli("split", tmp_path / "m.pth", "--all")
    cli("merge", tmp_path / "m.pth", "-o", tmp_path / "again.pth")
    cli("diff", tmp_path / "m.pth", tmp_path / "again.pth")


def test_missing_parts_are_named(cli, run, tmp_path):
    cli("split", run / "best.pth", "--all")
    (run / "best_history.pth").unlink()
    os.remove(run / "best.pth")
    message = cli("merge", run / "best.pth", code=3).stderr
    assert "best_history.pth" in message
    assert "best_rng.pth" not in message
    assert not (run / "best.pth").exists()


def test_parts_that_do_not_belong_together(cli, run):
    cli("split", run / "best.pth", "--all")
    torch.save([1], run / "best_progress.pth")
    assert "progress" in cli("merge", run / "best.pth", "-o", run / "x.pth", code=3).stderr
    assert not (run / "x.pth").exists()


def test_weights_alone_can_be_split_by_name(cli, run):
    cli("split", run / "weights.pth", "--keys", "bias")
    assert torch.load(run / "weights_bias.pth", weights_only=True).shape == (2,)
