"""``fitkit convert``: to one file or to shards, and back."""

from __future__ import annotations

import pytest

from fitkit import NNHandler
from fitkit.checkpointing.storage import single_or_sharded


@pytest.mark.parametrize("name", ["best.pth", "weights.pth"])
def test_there_and_back_is_the_same_content(cli, run, name):
    before = (run / name).read_bytes()
    assert cli("convert", run / name, run / "s.pth", "--sharded").stdout == (
        f"wrote {run / 's.pth'}\n"
    )
    assert (run / name).read_bytes() == before
    assert len([path for path in run.iterdir() if path.suffix == ".shards"]) == 1
    cli("verify", run / "s.pth")
    cli("diff", run / name, run / "s.pth")
    cli("convert", run / "s.pth", run / "new" / "one.pth")
    assert [path.name for path in (run / "new").iterdir()] == ["one.pth"]
    cli("diff", run / name, run / "new" / "one.pth")


def test_a_run_goes_on_from_the_shards(cli, run):
    cli("convert", run / "best.pth", run / "s.pth", "--sharded")
    assert NNHandler.load(run / "s.pth").state.global_step == 16


def test_json_has_the_size_of_the_shards_too(as_json, run):
    found = as_json("convert", run / "best.pth", run / "s.pth", "--sharded")
    assert found["written"] == str(run / "s.pth")
    (folder,) = run.glob("*.shards")
    files = [run / "s.pth", *folder.iterdir()]
    assert found["size_bytes"] == sum(path.stat().st_size for path in files)


def test_a_file_that_is_there_stays_without_force(cli, run):
    (run / "mine.pth").write_text("mine")
    assert "pass --force" in cli("convert", run / "best.pth", run / "mine.pth", code=3).stderr
    assert (run / "mine.pth").read_text() == "mine"
    cli("convert", run / "best.pth", run / "mine.pth", "--force")
    cli("diff", run / "best.pth", run / "mine.pth")


def test_a_file_may_take_its_own_place(cli, run):
    cli("convert", run / "best.pth", run / "copy.pth")
    for options in (["--sharded"], ["--sharded"], []):
        cli("convert", run / "copy.pth", run / "copy.pth", "--force", *options)
        cli("diff", run / "best.pth", run / "copy.pth")
        assert len(list(run.glob("*.shards"))) == 1, "shards that no file names are left"


def test_what_cannot_be_read_leaves_no_file(cli, run, damage):
    damage(run / "best.pth")
    assert "best.pth" in cli("convert", run / "best.pth", run / "new.pth", code=3).stderr
    cli("convert", run / "none.pth", run / "new.pth", code=3)
    cli("convert", run / "best.pth", code=2)
    assert not (run / "new.pth").exists()


def test_the_command_does_what_the_function_does(cli, run):
    cli("convert", run / "best.pth", run / "a.pth")
    single_or_sharded.convert(run / "best.pth", run / "b.pth", sharded=False)
    assert (run / "a.pth").stat().st_size == (run / "b.pth").stat().st_size
