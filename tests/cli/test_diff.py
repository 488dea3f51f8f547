"""``fitkit diff``."""

from __future__ import annotations

import time

import pytest
import torch


def change(path, **changes):
    """Another file that differs in these keys."""
    state = torch.load(path, weights_only=True) | changes
    other = path.with_name("other.pth")
    torch.save(state, other)
    return other


def test_equal(cli, as_json, run):
    assert cli("diff", run / "best.pth", run / "epochs" / "04.pth").stdout == "They are equal.\n"
    found = as_json("diff", run / "best.pth", run / "best.pth")
    assert found == {"equal": True, "differences": []}


def test_tensors(cli, as_json, run):
    weights = torch.load(run / "best.pth", weights_only=True)["model_state_dict"]
    weights["weight"][1, 2] += 0.5
    weights["weight"][0, 0] -= 0.25
    other = change(run / "best.pth", model_state_dict=weights)
    result = cli("diff", run / "best.pth", other, code=1)
    assert result.stdout.splitlines() == [
        "model_state_dict/weight: in 2 of 6 elements, by at most 0.5",
        "They differ in 1 place.",
    ]
    found = as_json("diff", run / "best.pth", other, code=1)
    (one,) = found["differences"]
    assert (one["num_different"], one["largest"]) == (2, pytest.approx(0.5))
    assert one["first"] == {"shape": [2, 3], "dtype": "float32"}


def test_other_leaves(cli, as_json, run):
    other = change(run / "best.pth", seed=None, more=1, sde={"a": torch.ones(3)})
    lines = cli("diff", run / "best.pth", other, code=1).stdout.splitlines()
    assert lines == [
        "seed: 3 | None",
        "sde: None | <1 key>",
        "more: only in B: 1",
        "They differ in 3 places.",
    ]
    assert cli("diff", other, run / "best.pth", code=1).stdout.count("only in A: 1") == 1
    found = as_json("diff", run / "best.pth", other, code=1)["differences"]
    assert found[0] == {"path": "seed", "first": 3, "second": None}
    assert "first" not in found[2]


def test_nan_is_null(as_json, run):
    weights = torch.load(run / "best.pth", weights_only=True)["model_state_dict"]
    weights["bias"][0] = torch.nan
    other = change(run / "best.pth", model_state_dict=weights)
    (one,) = as_json("diff", run / "best.pth", other, code=1)["differences"]
    assert one["largest"] is None


def test_ignored(cli, run):
    other = change(run / "best.pth", seed=4, history={"epoch": [], "history": {}})
    files = (run / "best.pth", other)
    cli("diff", *files, "--ignore", "seed", code=1)
    cli("diff", *files, "--ignore", "seed", "--ignore", "history")
    cli("diff", *files, "--ignore", "se?d", "--ignore", "hist*/*", code=0)
    cli("diff", *files, "--ignore", "eed", "--ignore", "history", code=1)


def test_only_weights(cli, run):
    cli("diff", run / "best.pth", run / "weights.pth", code=1)
    cli("diff", run / "best.pth", run / "weights.pth", "--weights")
    cli("diff", run / "epochs" / "01.pth", run / "weights.pth", "--weights", code=1)


def test_what_cannot_be_read_is_no_difference(cli, run, damage):
    damage(run / "best.pth")
    result = cli("diff", run / "best.pth", run / "epochs" / "04.pth", code=3)
    assert "checksum" in result.stderr


def test_shared_tensors_of_one_file_are_named_at_once(cli, tmp_path):
    """Their whole repr would take seconds."""
    a, b = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"a": [[torch.zeros(3)] * 1000] * 50}, a)
    torch.save({"b": [["x" * 100] * 1000] * 1000}, b)
    began = time.process_time()
    for first, second in ((a, b), (b, a)):
        assert len(cli("diff", first, second, code=1).stdout) < 500
    for path in (a, b):
        assert len(cli("inspect", path).stdout) < 500
    assert time.process_time() - began < 3
