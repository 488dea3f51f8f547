"""``fitkit split`` and ``fitkit merge``."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.saving import merge_parts
from fitkit.checkpointing.storage import run_record
from fitkit.testing import differences


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
    keys = [*torch.load(run / "best.pth", weights_only=True), "all_keys"]
    assert {path.name for path in run.glob("best_*.pth")} == {f"best_{key}.pth" for key in keys}
    assert "--force" in cli("merge", run / "best.pth", code=3).stderr
    cli("merge", run / "best.pth", "-o", run / "again.pth")
    cli("diff", run / "best.pth", run / "again.pth")
    assert run_record.read(run / "again.pth") == run_record.read(run / "best.pth") is not None
    assert run_record.read(run / "best_model_state_dict.pth") is None, "it is of no run"
    os.remove(run / "best.pth")
    cli("merge", run / "best.pth")
    assert NNHandler.load(run / "best.pth").state.global_step == 16


def test_keys_of_another_version_go_there_and_back(cli, run):
    state = torch.load(run / "best.pth", weights_only=True)
    newer = {**state, "future": {}, "nothing": None, "config": None}
    older = {key: state[key] for key in schema.KEYS}
    for content in (newer, older):  # what the first split left is not taken for the second
        torch.save(content, run / "x.pth")
        cli("split", run / "x.pth", "--all", "--force")
        again = merge_parts(run / "x.pth")
        assert list(again) == list(content)
        assert not list(differences(again, content))


def test_what_an_earlier_version_split_is_merged(cli, run):
    cli("split", run / "best.pth", "--all")
    (run / "best_all_keys.pth").unlink()
    state = torch.load(run / "best.pth", weights_only=True)
    assert not list(differences(merge_parts(run / "best.pth"), state))
    for key in schema.OPTIONAL_KEYS:
        (run / f"best_{key}.pth").unlink()
    assert set(merge_parts(run / "best.pth")) == set(schema.KEYS)


def test_a_list_of_keys_that_was_altered_is_refused(cli, run):
    cli("split", run / "best.pth", "--all")
    for altered, message in (
        ([1], "does not name keys"),
        (["history"], "not a checkpoint"),
        (["../x"], "cannot be a file"),
        ([*schema.KEYS, "lost"], "best_lost.pth"),
    ):
        torch.save(altered, run / "best_all_keys.pth")
        assert message in cli("merge", run / "best.pth", "-o", run / "x.pth", code=3).stderr
        assert not (run / "x.pth").exists()


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
