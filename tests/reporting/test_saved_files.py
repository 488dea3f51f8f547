"""Saves: recorded ones and files, each once; a file may say what it likes."""

from __future__ import annotations

import math

import pytest

from fitkit.reporting.saved_files import merge_saves, recorded_by_report, rows_of_saves

ONE = {"name": "a.pth", "epoch": 1, "step": 10, "is_best": False}


def test_a_save_that_was_recorded_and_whose_file_is_here_counts_once():
    recorded = [{**ONE, "is_best": True}, {**ONE, "name": "z.pth", "step": 5}]
    found = merge_saves(
        recorded, [{**ONE, "name": "sub/a.pth"}, {**ONE, "name": "b.pth", "step": 30}]
    )
    assert [(one["name"], one["step"]) for one in found] == [
        ("z.pth", 5),
        ("a.pth", 10),
        ("b.pth", 30),
    ]
    assert found[1]["is_best"]
    assert found[2]["text"] == "saved b.pth, step 30"


@pytest.mark.parametrize(
    "recorded",
    [
        None,
        3,
        "abc",
        [3, None, []],
        [{**ONE, "epoch": math.nan}],
        [{**ONE, "epoch": "1"}],
        [{**ONE, "step": True}],
        [{**ONE, "name": None}],
        [{}],
    ],
)
def test_what_is_no_save_is_passed_over(recorded):
    assert merge_saves(recorded, []) == []


def test_what_a_saver_let_go_is_not_listed(tmp_path):
    (tmp_path / "here.pth").write_text("")
    names = ["gone.pth", "here.pth", "last.pth", "x" * 5000, "null\0"]
    saves = merge_saves([{**ONE, "name": name, "step": i} for i, name in enumerate(names, 1)], [])
    state = {"callback_states": {"s": {"state": {"last_path": "last.pth", "last_step": 3}}}}
    rows = rows_of_saves(saves, state, tmp_path)
    assert [(row["name"], row["condition"], row["marks"]) for row in rows] == [
        ("here.pth", "saved", []),
        ("last.pth", "being written", ["last"]),
    ]


def test_the_records_of_a_report_are_found_in_a_checkpoint():
    report = {"saves": [ONE], "facts": {}}
    assert (
        recorded_by_report({"callback_states": {"a": {}, "HTMLReport": {"state": report}}})
        == report
    )
    assert recorded_by_report({"callback_states": {"a": 3}}) == recorded_by_report({}) == {}
