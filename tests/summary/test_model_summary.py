"""The table of a model: its cells, columns and totals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit.summary.model_summary import ModelSummary, ModuleRow

ROW = ModuleRow("", "Net", ((4, 2),), 1, 1234567, 1000, None)
SUMMARY = ModelSummary("Net", (ROW,), 1234567, 1000, 2048, 0, 1024, None)


@pytest.mark.parametrize(
    ("change", "cells"),
    [
        ({}, ("(model)", "Net", "(4, 2)", "1,234,567", "1,000")),
        ({"name": "head"}, ("  head", "Net", "(4, 2)", "1,234,567", "1,000")),
        ({"name": "a.b.0"}, ("      0", "Net", "(4, 2)", "1,234,567", "1,000")),
        ({"outputs": (), "num_calls": 0}, ("(model)", "Net", "", "1,234,567", "1,000")),
        ({"num_calls": 2}, ("(model)", "Net", "(4, 2) x2", "1,234,567", "1,000")),
        ({"outputs": ((1,), ())}, ("(model)", "Net", "(1,), ()", "1,234,567", "1,000")),
        ({"same_as": "a.b"}, ("(model)", "Net", "(4, 2)", "as a.b", "")),
        ({"same_as": ""}, ("(model)", "Net", "(4, 2)", "as the model", "")),
    ],
)
def test_the_cells_of_a_row(change, cells):
    assert replace(ROW, **change).cells() == cells


NAMES = st.lists(st.text("ab.", min_size=1, max_size=30), max_size=6)


@given(names=NAMES, numbers=st.integers(0, 10**12))
def test_columns_are_aligned(names, numbers):
    rows = [replace(ROW, name=name, num_parameters=numbers, num_trainable=0) for name in names]
    lines = str(replace(SUMMARY, rows=tuple(rows))).splitlines()
    header, rule, *table = lines[:-3]
    assert len(table) == len(rows)
    assert {len(line) for line in table} <= {len(header)}  # numbers are aligned to the right
    assert len(rule) == len(header)
    assert lines[-3] == rule
    assert {line.index("Net") for line in table} <= {header.index("kind")}


def test_names_are_aligned_to_the_left_and_numbers_to_the_right():
    small = replace(ROW, name="a", num_parameters=7, num_trainable=1)
    header, _, *table = str(replace(SUMMARY, rows=(ROW, small))).splitlines()[:4]
    assert [line[: header.index("output")] for line in table] == [
        "(model)  Net   ",
        "  a      Net   ",
    ]
    assert [line[header.index("param") :].split() for line in table] == [
        ["1,234,567", "1,000"],
        ["7", "1"],
    ]
    ends = [
        line.index(number) + len(number) for line, number in zip(table, ("567", " 7 "), strict=True)
    ]
    assert ends[0] == ends[1] - 1 == header.index("parameters") + len("parameters")


def test_an_empty_last_cell_leaves_no_blanks():
    lines = str(replace(SUMMARY, rows=(ROW, replace(ROW, name="a", same_as="b")))).splitlines()
    assert all(line == line.rstrip() for line in lines)


def test_the_totals():
    assert str(SUMMARY).splitlines()[-2:] == [
        "parameters: 1,234,567, trainable 1,000, not trainable 1,233,567",
        "memory: parameters 2.0 KiB, buffers 0 B, gradients 1.0 KiB",
    ]
    assert str(replace(SUMMARY, optimizer_bytes=0)).endswith("gradients 1.0 KiB, optimizer 0 B")


def test_a_summary_is_printed_as_its_table():
    assert repr(SUMMARY) == str(SUMMARY)


def test_a_notebook_shows_the_same_cells_escaped():
    row = replace(ROW, name="<b>", kind="Net<int>")
    html = replace(SUMMARY, rows=(ROW, row))._repr_html_()
    assert "\u2003&lt;b&gt;" in html
    assert "Net&lt;int&gt;" in html
    assert "<b>" not in html
    assert html.count("<tr>") == 3
    assert html.count("<div>") == 2
