"""Configuration as rows: readable, bounded, whatever a file says."""

from __future__ import annotations

import pytest
import torch

from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.checkpointing.format.encoding import encode
from fitkit.reporting.checkpoint_state import learning_rates
from fitkit.reporting.configuration import (
    as_text,
    environment,
    import_path,
    sections,
    weights_by_module,
)


@pytest.fixture(scope="module")
def state(finished_run):
    return read_metadata(finished_run / "all" / "04.pth").state


def rows(found, title):
    return dict(next(one["rows"] for one in found if one["title"] == title))


def test_a_checkpoint_tells_its_parts(state):
    found = sections(state, {"fit": {"epochs": 8}})
    assert rows(found, "Model") == {
        "class": "torch.nn.Linear",
        "in_features": "3",
        "out_features": "2",
        "kind": "classification",
    }
    assert rows(found, "Optimizer") == {
        "class": "torch.optim.SGD",
        "lr": "0.5",
        "momentum": "0.9",
        "learning rate now": "0.05",
    }
    assert rows(found, "Scheduler")["class"] == "torch.optim.lr_scheduler.StepLR"
    assert rows(found, "Scheduler")["interval"] == "epoch"
    assert rows(found, "Loss")["label_smoothing"] == "0.1"
    assert rows(found, "Fit") == {"epochs": "8", "seed": "0"}


def test_weights_are_put_together_by_module(state):
    assert weights_by_module(state) == [
        {
            "module": "(the model itself)",
            "tensors": "weight 2×3, bias 2",  # noqa: RUF001
            "dtype": "float32",
            "count": 8,
        }
    ]
    nested = {"a.b.weight": torch.ones(2, 2), "a.b.n": torch.tensor(1), "c": torch.ones(1)}
    found = weights_by_module({"model_state_dict": {**nested, "a._extra_state": {"x": 1}}})
    assert [(one["module"], one["count"]) for one in found] == [
        ("a.b", 5),
        ("(the model itself)", 1),
    ]


def test_versions_and_what_was_noted(state):
    found = dict(environment(state, {"environment": {"device": "cpu"}}))
    assert {"fitkit", "torch", "device"} == set(found)


@pytest.mark.parametrize("value", [3, "text", None, [1], {"fit": 3, "environment": [1]}])
def test_facts_that_a_file_made_up_do_no_harm(state, value):
    facts = value if isinstance(value, dict) else {"fit": value}
    assert sections({**state, "loss": {"kwargs": value}, "ema_state_dict": None}, facts)
    environment({}, facts)
    assert learning_rates(value) == learning_rates({"param_groups": value}) == []


def test_values_are_short():
    assert len(as_text("x" * 10_000)) < 400
    assert len(as_text(list(range(10_000)))) < 400
    assert as_text({"a": {"b": {"c": {"d": {}}}}}) == "{a: {b: {c: {d: …}}}}"
    assert as_text(torch.zeros(2, 3)) == "tensor 2×3 float32"  # noqa: RUF001
    assert as_text(encode({"kind": torch.float16})).startswith("{kind: ")
    assert as_text(torch.nn.ReLU) == "ReLU"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b:C.D", "a.b.C.D"),
        ("torch.optim.sgd:SGD", "torch.optim.SGD"),
        ("torch.nn.modules.loss:MSELoss", "torch.nn.MSELoss"),
        ("plain", "plain"),
        (3, "not known"),
    ],
)
def test_classes_are_named_as_they_are_imported(name, expected):
    assert import_path(name) == expected
