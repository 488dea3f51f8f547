"""``fitkit verify``."""

from __future__ import annotations

import torch


class Runs:
    def __reduce__(self):
        return print, ("run",)


def test_whole_files_and_folders(cli, as_json, run):
    shown = cli("verify", run).stdout
    assert shown.splitlines()[-1] == "8 of 8 files whole"
    shown = cli("verify", run / "best.pth", run / "weights.pth").stdout
    assert shown.splitlines()[-1] == "2 of 2 files whole"
    assert {one["result"] for one in as_json("verify", run)} == {"whole"}


def test_the_record_that_is_damaged_is_named(cli, as_json, run, damage):
    damage(run / "epochs" / "02.pth")
    shown = cli("verify", run, code=1).stdout
    assert "02.pth' is damaged: the checksum of its record '" in shown
    assert "7 of 8 files whole" in shown
    (found,) = as_json("verify", run / "epochs" / "02.pth", code=1)
    assert found["result"] == "damaged"
    assert "/data/" in found["problem"]


def test_a_file_that_would_run_code(cli, tmp_path):
    torch.save({"a": Runs()}, tmp_path / "unsafe.pth")
    assert "could run code" in cli("verify", tmp_path / "unsafe.pth", code=1).stdout


def test_what_cannot_be_looked_at(cli, run, tmp_path):
    assert "no file" in cli("verify", tmp_path / "nothing.pth", code=3).stdout
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in cli("verify", run, tmp_path / "empty", code=3).stdout


def test_damage_weighs_more_than_what_is_missing(cli, run, damage, tmp_path):
    damage(run / "best.pth")
    cli("verify", tmp_path / "nothing.pth", run / "best.pth", code=1)
