"""SavedFiles: what a saver keeps, forgets and reads from earlier versions."""

from __future__ import annotations

from fitkit import ModelCheckpoint, Retention
from fitkit.checkpointing.savers.save_request import SaveRequest


def written(saver, *names, **details):
    for step, name in enumerate(names):
        saver.mark_written(SaveRequest(saver, saver.folder / name, step=step, **details))


def test_without_retention_every_file_is_kept_for_good(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth")
    written(saver, "1.pth", "2.pth", "1.pth")
    assert (saver.kept, saver.lasting, saver.to_delete) == ([], ["2.pth", "1.pth"], ())
    assert saver.keeps(tmp_path / "1.pth")
    assert not saver.keeps(tmp_path / "3.pth")
    assert not saver.keeps(tmp_path / "sub" / "1.pth")


def test_lasting_files_and_those_under_retention(tmp_path):
    retention = Retention(keep_last=1, keep_every_n_epochs=2)
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", retention=retention)
    written(saver, "1.pth")
    written(saver, "2.pth", is_lasting=True)
    written(saver, "3.pth")
    assert (saver.kept, saver.lasting) == ([["3.pth", None]], ["2.pth"])
    assert saver.to_delete == ("1.pth",)
    assert [saver.keeps(tmp_path / f"{n}.pth") for n in (1, 2, 3)] == [False, True, True]
    assert tmp_path / "1.pth" in saver.files()


def test_it_forgets_files_that_are_of_another_run(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "loss", mode="min")
    written(saver, "1.pth", score=0.5)
    written(saver, "preempted.pth", preempted=True)
    saver.forget(lambda path: True)
    assert (saver.lasting, saver.best_path, saver.preempted_path) == ([], None, None)
    assert saver.best == 0.5


def test_a_state_of_an_earlier_version_has_no_lasting_files(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth")
    written(saver, "1.pth")
    state = saver.state_dict()
    del state["lasting"]
    saver.load_state_dict(state)
    assert saver.lasting == []


def test_the_file_of_a_preempted_process_is_superseded(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth")
    written(saver, "preempted.pth", preempted=True)
    assert saver.keeps(tmp_path / "preempted.pth")
    saver.supersede_preempted()
    saver.supersede_preempted()
    assert (saver.preempted_path, saver.to_delete) == (None, ("preempted.pth",))
    assert not saver.keeps(tmp_path / "preempted.pth")
