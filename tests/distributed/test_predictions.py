"""Predictions of several ranks: order, objects per sample, files, and ranks that stop early."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fitkit import NNHandler, PredictionWriter

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("predict_run.py")
specification = importlib.util.spec_from_file_location("predict_run", SCRIPT)
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)


@pytest.fixture(scope="module")
def folder(shared_launcher, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions")
    shared_launcher.run_script(SCRIPT, out)
    return out


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"rank{rank}.pth", weights_only=False) for rank in range(2)]


def test_every_rank_gets_all_outputs(ranks):
    assert torch.equal(ranks[0]["joined"], ranks[1]["joined"])
    assert ranks[0]["joined"].shape == (7, 1)
    steps = ranks[0]["joined"].diff(dim=0)  # of a linear model on equally spaced inputs
    torch.testing.assert_close(steps, steps[:1].expand(6, 1), rtol=1e-3, atol=1e-5)
    for name, size in (("of_three", 3), ("of_lists", 7)):
        for rank in ranks:
            torch.testing.assert_close(rank[name], ranks[0]["joined"][:size])


def test_each_rank_yields_its_share_of_every_batch(ranks):
    (a, b), (c, d) = ranks[0]["batches"], ranks[1]["batches"]
    assert [len(part) for part in (a, b, c, d)] == [2, 2, 2, 1]
    # also where averages of running statistics differ between ranks: those of rank 0 count
    assert torch.equal(torch.cat([a, c, b, d]), ranks[0]["joined"])


def test_a_rank_without_samples_yields_nothing(ranks):
    assert [len(rank["few"]) for rank in ranks] == [1, 0]


def test_a_rank_that_stops_early_stops_nobody(ranks):
    assert [len(rank["early"]) for rank in ranks] == [2, 1]
    assert ranks[0]["evaluation"] == ranks[1]["evaluation"]


def test_objects_per_sample_are_in_the_order_of_the_data(ranks):
    for rank in ranks:
        found = rank["objects"]
        assert [one["text"] for one in found["objects"]] == ["0", "2", "4", "6", "8", "10", "12"]
        assert [len(one["rows"]) for one in found["objects"]] == [0, 2, 4, 6, 8, 10, 12]
        assert found["half"].dtype is torch.float32
        assert torch.equal(found["half"], torch.arange(14.0).reshape(7, 2))


def test_the_loss_of_a_model_is_a_mean_over_the_labels_of_all_ranks(ranks):
    # the same in this process, and by hand
    for rank in ranks:
        for found, expected in zip(rank["tagger"], script.train_tagger(), strict=True):
            torch.testing.assert_close(found, expected)
    loss, (first,), weight = ranks[0]["tagger"]
    model = NNHandler(script.Tagger, "cpu", seed=0).module
    expected = model(script.IDS, labels=script.LABELS)["loss"]
    assert [loss, first] == pytest.approx([expected.item()] * 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(expected, model.embed.weight)
    torch.testing.assert_close(weight, model.embed.weight.detach() - 0.5 * gradient)


def test_files_of_both_ranks_are_read_in_the_order_of_the_data(folder, ranks):
    assert [rank["returned"] for rank in ranks] == [None, None]
    batches = list(PredictionWriter.read(folder / "files"))
    assert torch.equal(torch.cat(batches), ranks[0]["joined"])
    assert len(list((folder / "files").iterdir())) == 6
