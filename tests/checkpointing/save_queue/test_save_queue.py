"""Saves that fail: the error, or the warning and a run that goes on; real full disks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import warnings

import pytest
import torch
from torch import nn

import fitkit
from fitkit import AutoSaver, ConfigurationError, ModelCheckpoint, Retention, SaveError
from fitkit.checkpointing.storage import is_checkpoint, safe_load

DATA = (torch.zeros(4, 2), torch.zeros(4, 1))
both = pytest.mark.parametrize("background", [False, True], ids=["now", "behind"])


def make():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(lambda outputs, targets: (outputs + 1).square().mean())
    return handler


class Before(fitkit.Callback):
    """Does something before an epoch (from 1), when no save is being written."""

    order = -10

    def __init__(self, **actions):
        self.actions = {int(epoch[1:]): action for epoch, action in actions.items()}

    def on_epoch_begin(self, epoch, logs):
        while self.handler.saves.is_busy:
            time.sleep(0.001)
        action = self.actions.get(epoch + 1)
        if action is not None:
            action()


def run(callbacks, epochs=5, handler=None, **options):
    handler = make() if handler is None else handler
    handler.fit(DATA, epochs=epochs, callbacks=callbacks, progress_bar=False, **options)
    return handler


def names(folder):
    """The files in a folder, without the lock of a run that trains into it."""
    paths = folder.iterdir() if folder.exists() else ()
    return sorted(path.name for path in paths if not path.name.endswith(".fitkit-lock"))


def mounted(folder, *command):
    if subprocess.run(["mount", *command, str(folder)], capture_output=True).returncode:
        pytest.skip("mounting takes root")


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds a few checkpoints; ``fill`` leaves no room, ``free`` gives it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "other").open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


def free(folder):
    (folder / "other").unlink()


# ---- the argument -------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["ignore", None, True, "", 1])
def test_an_answer_to_errors_that_means_nothing(on_error):
    for make_saver in (lambda: ModelCheckpoint("a", on_error=on_error),
                       lambda: AutoSaver(1, on_error=on_error)):  # fmt: skip
        with pytest.raises(ConfigurationError, match="on_error must be 'raise' or 'warn'"):
            make_saver()


@pytest.mark.parametrize("background", ["yes", 2, 0.5, "", []])
def test_a_background_that_means_nothing(background):
    for make_saver in (lambda: ModelCheckpoint("a", background=background),
                       lambda: AutoSaver(1, background=background)):  # fmt: skip
        with pytest.raises(ConfigurationError, match="background must be True or False"):
            make_saver()


# ---- a full disk --------------------------------------------------------------------------------


def savers_in(folder, **options):
    return [
        ModelCheckpoint(folder / "{epoch}.pth", retention=Retention(keep_last=2), **options),
        ModelCheckpoint(folder / "best.pth", "loss", save_best_only=True, **options),
    ]


@both
def test_a_full_disk_ends_training_and_leaves_everything_as_it_was(small_disk, background):
    savers, seen = savers_in(small_disk, background=background), {}

    def note():
        seen["states"] = [saver.state_dict() for saver in savers]
        seen["files"] = {path.name: path.read_bytes() for path in small_disk.glob("*.pth")}
        fill(small_disk)

    with pytest.raises(SaveError, match=r"3\.pth.*No space left on device") as caught:
        run([*savers, Before(e3=note, e5=lambda: None)])
    assert any("as it was before this save" in note for note in caught.value.__notes__)
    free(small_disk)
    assert {path.name: path.read_bytes() for path in small_disk.glob("*.pth")} == seen["files"]
    assert names(small_disk) == ["1.pth", "2.pth", "best.pth"]
    assert [saver.state_dict() for saver in savers] == seen["states"]
    again = run(savers_in(small_disk, background=background), resume=small_disk)
    assert again.history.epoch == [0, 1, 2, 3, 4]
    assert {"5.pth", "best.pth"} <= set(names(small_disk))


@both
def test_with_warn_the_run_goes_on_and_saves_again_once_there_is_room(small_disk, background):
    savers = savers_in(small_disk, background=background, on_error="warn")
    seen = {}

    def note():
        seen["files"] = {path.name: path.read_bytes() for path in small_disk.glob("*.pth")}
        seen["states"] = [saver.state_dict() for saver in savers]
        fill(small_disk)

    def compare():
        handler.wait_for_saves()  # warns now, where it is not said yet
        free(small_disk)
        found = {path.name: path.read_bytes() for path in small_disk.glob("*.pth")}
        seen["same"] = found == seen["files"]
        seen["as before"] = [saver.state_dict() for saver in savers] == seen["states"]

    handler = make()
    with pytest.warns(RuntimeWarning, match="No space left on device.*Training goes on") as caught:
        run([*savers, Before(e3=note, e4=compare)], handler=handler)
    assert seen["same"]
    assert seen["as before"]
    assert len(caught) == 2, "once for each file that could not be written"
    assert names(small_disk) == ["4.pth", "5.pth", "best.pth"]
    assert [entry[0] for entry in savers[0].kept] == ["4.pth", "5.pth"]
    for path in small_disk.iterdir():
        safe_load.verify(path)
    uninterrupted = run([], 5)
    assert torch.equal(uninterrupted.module.weight, handler.module.weight)


@both
def test_a_file_from_after_a_failed_save_knows_what_there_is(small_disk, background):
    saver = savers_in(small_disk, background=background, on_error="warn")[0]
    with pytest.warns(RuntimeWarning, match=r"3\.pth"):
        run([saver, Before(e3=lambda: fill(small_disk), e4=lambda: free(small_disk))], 4)
    state = safe_load.read(small_disk / "4.pth")["callback_states"]["ModelCheckpoint"]["state"]
    assert [name for name, _ in state["kept"]] == ["2.pth", "4.pth"]
    run(savers_in(small_disk), 6, resume=True)
    assert [name for name in names(small_disk) if name != "best.pth"] == ["5.pth", "6.pth"]


# ---- other reasons ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_file_system_that_becomes_read_only(tmp_path, background, on_error):
    folder = tmp_path / "fixed"
    folder.mkdir()
    mounted(folder, "--bind", str(folder))
    saver = ModelCheckpoint(folder / "{epoch}.pth", background=background, on_error=on_error)

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how},bind", str(folder)], check=True)

    try:
        callbacks = [saver, Before(e2=lambda: remount("ro"), e3=lambda: remount("rw"))]
        if on_error == "raise":
            with pytest.raises(SaveError, match=r"2\.pth.*Read-only file system"):
                run(callbacks, 3)
            assert names(folder) == ["1.pth"]
        else:
            with pytest.warns(RuntimeWarning, match=r"2\.pth.*Read-only file system"):
                run(callbacks, 3)
            assert names(folder) == ["1.pth", "3.pth"]
            assert saver.last_path == "3.pth"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@both
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_name_that_is_a_folder(tmp_path, background, on_error):
    (tmp_path / "2.pth").mkdir()
    (tmp_path / "2.pth" / "precious").write_text("precious")
    saver = ModelCheckpoint(
        tmp_path / "{epoch}.pth", background=background, on_error=on_error, max_to_keep=1
    )
    if on_error == "raise":
        with pytest.raises(SaveError, match=r"2\.pth.*it is a folder"):
            run([saver, Before()], 3)
        assert names(tmp_path) == ["1.pth", "2.pth"]
        assert saver.last_path == "1.pth"
    else:
        with pytest.warns(RuntimeWarning, match=r"2\.pth.*it is a folder"):
            run([saver, Before()], 3)
        assert names(tmp_path) == ["2.pth", "3.pth"]
    assert (tmp_path / "2.pth" / "precious").read_text() == "precious"


@both
def test_a_folder_that_is_removed_during_the_run_is_made_again(tmp_path, background):
    folder = tmp_path / "runs"
    saver = ModelCheckpoint(folder / "{epoch}.pth", background=background, max_to_keep=1)
    run([saver, Before(e3=lambda: shutil.rmtree(folder))], 4)
    assert names(folder) == ["4.pth"]


@both
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_folder_in_whose_place_there_is_a_file(tmp_path, background, on_error):
    folder = tmp_path / "runs"
    saver = ModelCheckpoint(folder / "{epoch}.pth", background=background, on_error=on_error)

    def replace():
        shutil.rmtree(folder)
        folder.write_text("a file")

    def restore():
        assert folder.read_text() == "a file"
        folder.unlink()

    callbacks = [saver, Before(e2=replace, e3=restore)]
    if on_error == "raise":
        with pytest.raises(SaveError, match="runs"):
            run(callbacks, 4)
    else:
        with pytest.warns(RuntimeWarning, match=r"2\.pth"):
            run(callbacks, 4)
        assert names(folder) == ["3.pth", "4.pth"]


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_state_that_cannot_be_saved_is_an_error_whatever_the_saver_says(tmp_path, on_error):
    """That is a mistake in the program, not a full disk."""

    class Odd(fitkit.Callback):
        state_fields = ("thing",)
        thing = object()

    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", background=True, on_error=on_error)
    odd = Odd()
    odd.remember_initial_state = lambda: None
    with pytest.raises(fitkit.CheckpointError, match="thing"):
        run([saver, odd], 2)
    assert saver.last_path is None
    assert names(tmp_path) == []


# ---- several savers -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("first_fails", [True, False])
def test_of_two_savers_one_fails_and_the_other_writes(tmp_path, background, first_fails):
    good, bad = tmp_path / "good", tmp_path / "bad"
    bad.write_text("no folder")
    folders = (bad, good) if first_fails else (good, bad)
    savers = [
        ModelCheckpoint(
            folder / "{epoch}.pth", background=background, on_error="warn",
            retention=Retention(keep_last=2),
        )
        for folder in folders
    ]  # fmt: skip
    with pytest.warns(RuntimeWarning, match="bad") as caught:
        run([*savers, Before()], 3)
    assert len(caught) == 3
    assert names(good) == ["2.pth", "3.pth"]
    states = {saver.folder.name: saver for saver in savers}
    assert [name for name, _ in states["good"].kept] == ["2.pth", "3.pth"]
    assert (states["bad"].kept, states["bad"].last_path, states["bad"].last_step) == ([], None, -1)
    found = [
        entry["state"]["last_path"]
        for entry in safe_load.read(good / "3.pth")["callback_states"].values()
    ]
    assert sorted(found, key=str) == ["3.pth", None]


@both
def test_of_two_savers_that_answer_differently_the_stricter_one_counts(tmp_path, background):
    (tmp_path / "bad").write_text("no folder")
    lenient = ModelCheckpoint(
        tmp_path / "bad" / "{epoch}.pth", background=background, on_error="warn"
    )
    strict = ModelCheckpoint(tmp_path / "good" / "{epoch}.pth", background=background)
    with pytest.warns(RuntimeWarning, match="bad"):
        run([lenient, strict, Before()], 2)  # the strict one's own file can be written
    assert names(tmp_path / "good") == ["1.pth", "2.pth"]
    same = [
        ModelCheckpoint(tmp_path / "bad" / "{epoch}.pth", background=background, on_error=answer)
        for answer in ("warn", "raise")
    ]
    with pytest.raises(SaveError, match="bad"):
        run([*same, Before()], 2)


@both
def test_weights_fail_and_the_whole_state_is_written(tmp_path, background):
    (tmp_path / "w1.pth").mkdir()
    savers = [
        ModelCheckpoint(
            tmp_path / "w{epoch}.pth", background=background, on_error="warn",
            save_weights_only=True, max_to_keep=1,
        ),
        ModelCheckpoint(tmp_path / "{epoch}.pth", background=background),
    ]  # fmt: skip
    with pytest.warns(RuntimeWarning, match=r"w1\.pth") as caught:
        run([*savers, Before()], 2)
    assert len(caught) == 1
    assert names(tmp_path) == ["1.pth", "2.pth", "w1.pth", "w2.pth"]
    assert savers[0].kept == [["w2.pth", None]]


@both
def test_failing_and_warning_leave_no_litter(tmp_path, background):
    folder = tmp_path / "runs"
    (folder / "2.pth").mkdir(parents=True)
    savers = savers_in(folder, background=background, on_error="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run([*savers, Before()], 3)
    assert not [name for name in names(folder) if name.endswith(is_checkpoint.TEMP_SUFFIX)]


def test_what_was_asked_for_before_an_error_is_forgotten(tmp_path):
    class Dies(fitkit.Callback):
        order = 70  # after the savers

        def on_epoch_end(self, epoch, logs):
            raise ZeroDivisionError

    saver, handler = ModelCheckpoint(tmp_path / "{epoch}.pth"), make()
    handler.add_callback(saver)
    with pytest.raises(ZeroDivisionError):
        run([Dies()], 2, handler=handler)
    assert names(tmp_path) == []
    assert saver.requested == ()
