"""A run under way describes itself as its checkpoint would."""

from __future__ import annotations

import pytest
from torch import nn

import fitkit
from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.reporting.configuration import sections, weights_by_module
from fitkit.reporting.live_run import live_state, run_facts


@pytest.fixture
def trained(make_handler):
    handler = make_handler()
    handler.fit(epochs=2, ema_decay=0.9, progress_bar=False)
    return handler


def test_both_ways_show_the_same(trained, tmp_path):
    trained.save(tmp_path / "a.pth")
    saved, live = read_metadata(tmp_path / "a.pth").state, live_state(trained)
    titles = [one["title"] for one in sections(saved, {})]
    assert titles == [one["title"] for one in sections(live, {})]
    for one, other in zip(sections(saved, {}), sections(live, {}), strict=True):
        if one["title"] != "Loss":
            assert one == other
    assert weights_by_module(saved) == weights_by_module(live)
    assert saved["history"] == live["history"]
    assert saved["progress"]["state"] == live["progress"]["state"]


def test_parts_that_are_not_there_or_have_no_description():
    handler = fitkit.NNHandler(nn.Sequential(nn.Linear(1, 1)))
    handler.set_loss_fn(lambda outputs, targets: (outputs - targets).mean())
    found = {one["title"]: dict(one["rows"]) for one in sections(live_state(handler), {})}
    assert found["Model"]["class"] == "torch.nn.Sequential"
    assert found["Optimizer"] == {"class": "none"}
    assert found["Loss"]["class"].endswith("<lambda>")


def test_facts_are_plain_and_leave_out_what_is_not_known(trained):
    found = run_facts(trained, {"epochs": 3, "steps": None, "resumed": True, "metrics": []})
    assert found["fit"] == {"epochs": 3, "gradient_accumulation_steps": 1}
    assert found["environment"]["device"] == "cpu"
    assert set(found["environment"]) == {"python", "system", "device", "processes"}


def test_a_model_whose_parameters_have_no_values_yet():
    handler = fitkit.NNHandler(nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1)))
    assert set(live_state(handler)["model_state_dict"]) == {"1.weight", "1.bias"}
