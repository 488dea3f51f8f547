"""Logs of epochs, also those that somebody cut off or that are something else."""

from __future__ import annotations

import math

import pytest

from fitkit.reporting.log_files import read_log


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_both_kinds_tell_what_the_checkpoint_tells(finished_run):
    csv, lines = read_log(finished_run / "log.csv"), read_log(finished_run / "log.jsonl")
    assert csv == lines
    assert csv.epochs == list(range(len(csv.epochs)))
    assert {"loss", "val_loss", "lr"} <= set(csv.columns)


@pytest.mark.parametrize("separator", list(",;\t"))
def test_separators_and_quoted_names(tmp_path, separator):
    header = separator.join(["epoch", '"a ""b"""', "c"])
    text = f"{header}\n{separator.join(['0', '1.5', 'nan'])}\n{separator.join(['1', '', 'inf'])}\n"
    curves = read_log(written(tmp_path, "log.csv", text))
    assert curves.columns['a "b"'][0] == 1.5
    assert math.isnan(curves.columns['a "b"'][1])
    assert curves.columns["c"][1] == math.inf


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    csv = read_log(written(tmp_path, "a.csv", "epoch,loss,x\n0,1.0,2\n1,0."))
    lines = read_log(written(tmp_path, "a.jsonl", '{"epoch": 0, "loss": 1}\n{"epoch": 1, "lo'))
    assert csv.epochs == lines.epochs == [0]


def test_values_that_json_has_no_number_for(tmp_path):
    text = '{"epoch": 0, "a": "NaN", "b": "-Infinity", "c": null, "d": true, "e": [1]}\n'
    columns = read_log(written(tmp_path, "a.jsonl", text)).columns
    assert columns["b"] == [-math.inf]
    assert all(math.isnan(columns[name][0]) for name in "acde")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ""),
        ("a.csv", "time,value\n0,1\n"),
        ("a.csv", "epoch,loss\n"),
        ("a.csv", "epoch,loss\nx,1\n-1,2\n0.5,3\nnan,4\ninf,5\n"),
        ("a.csv", "\x00\x00,\n"),
        ("a.csv", "epoch,loss\n0," + 200_000 * "1"),
        ("a.jsonl", "[1, 2]\n3\nnull\n"),
        ("a.jsonl", "[" * 100_000),
        ("a.jsonl", '{"loss": 1}\n'),
    ],
)
def test_what_is_no_log_of_epochs_is_passed_over(tmp_path, name, text):
    assert read_log(written(tmp_path, name, text)) is None


def test_a_later_row_of_an_epoch_counts(tmp_path):
    curves = read_log(written(tmp_path, "a.csv", "epoch,loss\n1,3\n0,1\n1,2\n"))
    assert (curves.epochs, curves.columns["loss"]) == ([0, 1], [1.0, 2.0])
