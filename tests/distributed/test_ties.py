"""Tied and frozen parameters survive sharding, and files of sharded models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fitkit
from fitkit.checkpointing.storage import single_or_sharded

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

RUN = Path(__file__).parent / "ties_run.py"
FROZEN = [f"blocks.{number}.inner.weight" for number in range(5)]
TIES = {
    "blocks.1.outer.weight": "blocks.0.outer.weight",
    "blocks.2.outer.weight": "blocks.2.inner.weight",
    "blocks.3.outer.weight": "last.weight",
}


@pytest.fixture(scope="module")
def out(shared_launcher, tmp_path_factory):
    """What one process and two ranks leave."""
    out = tmp_path_factory.mktemp("ties")
    for processes in (1, 2):
        shared_launcher.run_script(RUN, out, processes=processes)
    return out


@pytest.fixture(scope="module")
def one(out):
    """One process."""
    return torch.load(out / "one.pth")


@pytest.fixture(scope="module", params=[0, 1])
def rank(out, request):
    """One of two."""
    return torch.load(out / f"rank{request.param}.pth")


def test_initial_values_are_those_of_one_process_to_the_bit(one, rank, kit):
    kit.assert_equal(rank["initial"], one["initial"])
    assert torch.equal(rank["table"], one["table"])
    assert rank["stream"]
    assert one["stream"]


def test_without_a_seed_and_of_a_ready_module_they_are_those_of_rank_0(out, kit):
    first, second = (torch.load(out / f"rank{number}.pth") for number in (0, 1))
    for name in ("unseeded", "ready"):
        kit.assert_equal(first[name], second[name])
        assert not torch.equal(first[name]["head.weight"], first["initial"]["head.weight"])


def test_blocks_that_share_parameters_with_others_are_gathered_with_them(one, rank):
    assert one["groups"] == []
    assert rank["groups"] == ["blocks.2", "blocks.4"]
    assert rank["ties"] == one["ties"] == [True, True, True]
    assert rank["is_sharded"] == [True, True]


def test_training_follows_one_process(one, rank, kit):
    for name in ("loss", "final", "averaged"):
        kit.assert_close(rank[name], one[name], 1e-9)
    for name in FROZEN:
        assert torch.equal(rank["final"][name], rank["initial"][name])
    for name, other in TIES.items():
        assert torch.equal(rank["final"][name], rank["final"][other])
    for name in ("head.weight", "blocks.0.inner.bias", "blocks.4.outer.weight"):
        assert not torch.equal(rank["final"][name], rank["initial"][name])


def test_one_file_of_it_is_that_of_one_process(out, rank, tmp_path, kit):
    single_or_sharded.convert(out / "saved2.pth", tmp_path / "whole.pth", sharded=False)
    found = torch.load(tmp_path / "whole.pth", weights_only=True)
    expected = single_or_sharded.read(out / "saved1.pth")
    kit.assert_equal(dict(found["model_state_dict"]), rank["final"])
    for key in ("model_state_dict", "optimizer_state_dict", "ema_state_dict"):
        kit.assert_close(found[key], expected[key], 1e-9)


@pytest.mark.parametrize("form", ["shards", "one file"])
def test_one_process_loads_it(out, rank, tmp_path, form, monkeypatch, kit):
    monkeypatch.syspath_prepend(RUN.parent)
    import ties_run

    path = out / "saved2.pth"
    if form == "one file":
        path = tmp_path / "whole.pth"
        single_or_sharded.convert(out / "saved2.pth", path, sharded=False)
    handler = fitkit.NNHandler.load(path, "cpu", model_class=ties_run.Tied)
    module = handler.module
    kit.assert_equal(dict(module.state_dict()), rank["final"])
    assert module.blocks[1].outer.weight is module.blocks[0].outer.weight
    assert module.last.weight is module.blocks[3].outer.weight
    frozen = {name for name, it in module.named_parameters() if not it.requires_grad}
    assert frozen == set(FROZEN)
