"""FileOwnership: whose a file is, what may replace it, and when it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import fitkit
from fitkit import AutoSaver, ConfigurationError, ModelCheckpoint, NNHandler, Retention
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.loading import read_metadata
from fitkit.checkpointing.storage import run_record
from fitkit.testing import differences

DATA = (torch.ones(8, 2), torch.ones(8, 1))


class Score(fitkit.Callback):
    def __init__(self, *scores):
        self.scores = scores

    def on_epoch_end(self, epoch, logs):
        self.log("score", self.scores[epoch])


def make(seed=0):
    handler = NNHandler(nn.Linear, in_features=2, out_features=1, seed=seed)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def train(epochs, *callbacks, seed=0, handler=None, **options):
    handler = handler or make(seed)
    handler.fit(DATA, epochs=epochs, callbacks=callbacks, progress_bar=False, **options)
    return handler


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def bytes_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_id(path):
    return run_record.read(path).run_id


def held(path, name="score"):
    return read_metadata(path).metrics[name]


# ---- files of another run -----------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_files_of_another_run_are_neither_replaced_nor_removed(tmp_path, background):
    train(3, ModelCheckpoint(tmp_path / "b" / "{epoch}.pth"), seed=7)
    before = bytes_in(tmp_path / "b")
    train(2, ModelCheckpoint(tmp_path / "a" / "{epoch}.pth", max_to_keep=1))
    saver = ModelCheckpoint(tmp_path / "b" / "{epoch}.pth", max_to_keep=1, background=background)
    with pytest.warns(RuntimeWarning, match=r"saves to '.*3-v2\.pth', as '.*/3\.pth' is kept or"):
        train(5, saver, resume=tmp_path / "a")
    after = bytes_in(tmp_path / "b")
    assert names(tmp_path / "b") == ["1.pth", "2.pth", "3.pth", "5.pth"]
    assert all(after[path] == content for path, content in before.items())
    assert saver.last_path == "5.pth"


def test_a_new_run_leaves_the_files_of_the_last_one_and_goes_on_from_its_own(tmp_path):
    first = train(3, ModelCheckpoint(tmp_path / "{epoch}.pth"))
    with pytest.warns(RuntimeWarning) as caught:
        second = train(2, ModelCheckpoint(tmp_path / "{epoch}.pth"), seed=7)
    assert len(caught) == 1, "it is said once"
    assert names(tmp_path) == ["1-v2.pth", "1.pth", "2-v2.pth", "2.pth", "3.pth"]
    assert first.run_identity.branch == 0
    assert latest.find_latest([tmp_path]).path == tmp_path / "2-v2.pth"
    third = train(2, ModelCheckpoint(tmp_path / "{epoch}.pth"), seed=7, resume=True)
    assert third.run_identity == second.run_identity


def test_going_back_begins_the_branch_that_a_folder_means(tmp_path):
    def saver():
        return ModelCheckpoint(tmp_path / "{epoch}.pth")

    train(4, saver())
    back = train(3, saver(), resume=tmp_path / "2.pth", seed=1)
    assert back.run_identity.branch == 1
    assert {run_id(path) for path in tmp_path.iterdir()} == {back.run_identity.run_id}
    assert latest.find_latest([tmp_path]).path == tmp_path / "3.pth"
    again = train(3, saver(), resume=tmp_path, seed=1)
    assert (again.history.epoch, again.run_identity.branch) == ([0, 1, 2], 1)


def test_a_handler_that_was_loaded_goes_on_as_its_run(tmp_path):
    first = train(2, ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1))
    loaded = NNHandler.load(tmp_path / "2.pth")
    loaded.set_loss_fn(nn.MSELoss())
    train(2, ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1), handler=loaded)
    assert loaded.run_identity.run_id == first.run_identity.run_id
    assert names(tmp_path) == ["4.pth"]
    loaded.save(tmp_path / "by_hand.pth")
    assert run_id(tmp_path / "by_hand.pth") == first.run_identity.run_id


def test_two_runs_of_one_script_write_equal_states(tmp_path):
    for name in "ab":
        train(2, ModelCheckpoint(tmp_path / name / "{epoch}.pth"))
    states = [torch.load(tmp_path / name / "2.pth", weights_only=True) for name in "ab"]
    assert list(differences(*states)) == []
    assert run_id(tmp_path / "a" / "2.pth") != run_id(tmp_path / "b" / "2.pth")


def test_files_of_an_earlier_version_belong_to_the_run_that_names_them(tmp_path):
    train(3, ModelCheckpoint(tmp_path / "{epoch}.pth", retention=Retention(keep_last=2)))
    for path in tmp_path.iterdir():
        torch.save(torch.load(path, weights_only=True), path)
    torch.save(torch.load(tmp_path / "2.pth", weights_only=True), tmp_path / "mine.pth")
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", retention=Retention(keep_last=2))
    train(5, saver, resume=True)
    assert names(tmp_path) == ["4.pth", "5.pth", "mine.pth"]


def test_own_files_are_not_read_again_until_somebody_replaces_them(tmp_path, monkeypatch):
    path, other = tmp_path / "a.pth", tmp_path / "other" / "a.pth"
    train(1, ModelCheckpoint(other), seed=1)
    read, reads, real = [], [], run_record.read
    monkeypatch.setattr(run_record, "read", lambda it: read.append(it) or real(it))

    def begin(batch, logs):
        reads.append(read.count(path))
        if batch == 5:
            os.replace(other, path)

    begins = fitkit.LambdaCallback(on_train_batch_begin=begin)
    with pytest.warns(RuntimeWarning, match=r"saves to '.*a-v2\.pth'.* not written by"):
        train(1, begins, ModelCheckpoint(path, save_freq=1), batch_size=1)
    assert len(set(reads[1:6])) == 1, "in the saves of batches 1 to 4"
    assert reads[6] > reads[5]


# ---- savers of one run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ModelCheckpoint", "AutoSaver"])
def test_a_file_that_another_saver_keeps_stays(tmp_path, name):
    best = ModelCheckpoint(tmp_path / "{epoch:02d}.pth", "score", save_best_only=True, mode="max")
    newest = ModelCheckpoint(tmp_path / "{epoch:02d}.pth", max_to_keep=1)
    if name == "AutoSaver":
        newest = AutoSaver(1, tmp_path, "{epoch:02d}", overwrite_last_saved=True)
    train(5, Score(0.5, 0.9, 0.1, 0.2, 0.3), newest, best)
    assert names(tmp_path) == ["01.pth", "02.pth", "05.pth"]
    assert (best.best_path, held(tmp_path / "02.pth")) == ("02.pth", 0.9)


def test_a_shared_file_goes_with_the_last_saver_that_keeps_it(tmp_path):
    best = ModelCheckpoint(tmp_path / "{epoch}.pth", "score", mode="max", max_to_keep=1)
    newest = ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1)
    train(4, Score(0.5, 0.6, 0.1, 0.9), newest, best)
    assert names(tmp_path) == ["4.pth"]


@pytest.mark.parametrize("options", [{"max_to_keep": 2}, {}, {"save_best_only": True}])
def test_two_contents_never_share_a_name(tmp_path, options):
    saver = ModelCheckpoint(tmp_path / "m_{score:.2f}.pth", "score", mode="max", **options)
    with pytest.warns(RuntimeWarning, match=r"m_0\.95-v2\.pth"):
        train(3, Score(0.951, 0.954, 0.953), saver)
    assert held(tmp_path / saver.best_path) == saver.best == 0.954
    assert {held(path) for path in tmp_path.iterdir()} >= {0.954}
    assert "m_0.95-v2.pth" in names(tmp_path)


def test_whole_state_and_weights_of_one_name_are_two_files(tmp_path):
    savers = [ModelCheckpoint(tmp_path / "{epoch}.pth", save_weights_only=w) for w in (True, False)]
    with pytest.warns(RuntimeWarning, match=r"1-v2\.pth"):
        train(1, *savers)
    assert names(tmp_path) == ["1-v2.pth", "1.pth"]
    assert latest.find_latest([tmp_path]).path == tmp_path / "1-v2.pth"
    assert latest.find_latest([tmp_path]).weights_only == [tmp_path / "1.pth"]


def test_two_savers_with_one_path_are_refused_when_training_begins(tmp_path):
    os.makedirs(tmp_path / "a")
    savers = [ModelCheckpoint(tmp_path / "a" / "last.pth"), AutoSaver(1, tmp_path / "a", "last")]
    with pytest.raises(ConfigurationError, match=r"last\.pth', ModelCheckpoint and AutoSaver"):
        train(1, *savers)
    assert names(tmp_path) == ["a"]


def test_a_name_without_placeholders_is_replaced_and_is_the_best_only_while_it_is(tmp_path):
    saver = ModelCheckpoint(tmp_path / "last.pth", "score", mode="max")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(2, Score(0.5, 0.9), saver)
    assert (saver.best, saver.best_path) == (0.9, "last.pth")
    train(1, Score(0, 0, 0.1), saver, handler=saver.handler)
    assert (saver.best, saver.best_path, names(tmp_path)) == (0.9, None, ["last.pth"])


def test_a_best_file_that_retention_removed_is_not_named(tmp_path):
    saver = ModelCheckpoint(
        tmp_path / "{epoch}.pth", "score", mode="max", retention=Retention(keep_last=1)
    )
    train(2, Score(0.9, 0.1), saver)
    assert (saver.best, saver.best_path, names(tmp_path)) == (0.9, None, ["2.pth"])


# ---- folders, links, starting again -------------------------------------------------------------


def test_folders_go_with_their_last_file_and_those_of_the_user_stay(tmp_path):
    for name in ("imagenet.shards", f"{'a' * 32}.shards", "run/empty", "run/1/mine"):
        os.makedirs(tmp_path / name)
    (tmp_path / "imagenet.shards" / "0.tar").touch()
    (tmp_path / "run" / "1" / "mine.txt").touch()
    train(4, ModelCheckpoint(tmp_path / "run" / "{epoch}" / "x" / "m.pth", max_to_keep=1))
    train(3, ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1))
    expected = ["1", "1/mine", "1/mine.txt", "4", "4/x", "4/x/m.pth", "empty"]
    assert names(tmp_path / "run") == expected
    assert (tmp_path / "imagenet.shards" / "0.tar").exists()
    assert (tmp_path / f"{'a' * 32}.shards").exists()


def inodes(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def savers_of_all_kinds(folder):
    return [
        ModelCheckpoint(folder / "{epoch}.pth", max_to_keep=2),
        ModelCheckpoint(folder / "last.pth"),
        ModelCheckpoint(folder / "best.pth", "loss", save_best_only=True),
        ModelCheckpoint(folder / "weights.pth", save_weights_only=True),
    ]


def test_a_finished_run_that_is_started_again_writes_nothing(tmp_path):
    train(3, *savers_of_all_kinds(tmp_path))
    before = inodes(tmp_path)
    for _ in range(3):
        again = train(3, *savers_of_all_kinds(tmp_path), resume=True)
        assert again.history.epoch == [0, 1, 2]
        assert inodes(tmp_path) == before
    (tmp_path / "best.pth").unlink()
    (tmp_path / "weights.pth").unlink()
    train(3, *savers_of_all_kinds(tmp_path), resume=True)
    assert sorted(inodes(tmp_path)) == sorted(before)


def test_a_link_that_is_there_already_leaves_nothing_behind(tmp_path):
    from fitkit.checkpointing.storage import atomic_write

    atomic_write.write({}, tmp_path / "a.pth", [tmp_path / "b.pth"])
    atomic_write.duplicate(tmp_path / "a.pth", tmp_path / "b.pth")
    assert names(tmp_path) == ["a.pth", "b.pth"]


# ---- processes ----------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, torch, fitkit
folder, mode, template = sys.argv[1:4]
class At(fitkit.Callback):
    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == 6:
            if mode in ("TERM", "KILL"): os.kill(os.getpid(), getattr(signal, "SIG" + mode))
            if mode == "wait": print("there", flush=True); sys.stdin.readline()
handler = fitkit.NNHandler(torch.nn.Linear, in_features=4, out_features=2, seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.CrossEntropyLoss())
more = [fitkit.ModelCheckpoint(folder + "/w{global_step}.pth", save_weights_only=True, save_freq=2)]
handler.fit((torch.ones(64, 4), torch.zeros(64, dtype=torch.long)), epochs=2, batch_size=8,
            callbacks=[fitkit.ModelCheckpoint(folder + "/" + template, save_freq=3),
                       *(more if "weights" in sys.argv else ()), At()],
            resume=None if "fresh" in sys.argv else folder, progress_bar=False)
print(handler.history.epoch, handler.run_identity.run_id)
"""


def start(folder, mode, template="last.pth", *more, **options):
    command = [sys.executable, "-c", SCRIPT, str(folder), mode, template, *more]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes, **options)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.slow
def test_preempted_at_a_file_of_the_same_place_leaves_nothing(tmp_path):
    assert finish(start(tmp_path, "TERM"))[0] == 143
    assert names(tmp_path) == ["last.pth", "preempted.pth"]
    code, _, err = finish(start(tmp_path, "go"))
    assert (code, names(tmp_path)) == (0, ["last.pth"]), err


def test_it_goes_with_the_next_save_of_any_saver(tmp_path):
    best = ModelCheckpoint(tmp_path / "best.pth", "score", mode="max", save_best_only=True)
    handler = train(1, Score(0.9), best)
    handler.save(tmp_path / "preempted.pth")
    best = ModelCheckpoint(tmp_path / "best.pth", "score", mode="max", save_best_only=True)
    last = ModelCheckpoint(tmp_path / "last.pth")
    train(2, Score(0.9, 0.1), best, last, resume=tmp_path / "best.pth")
    assert names(tmp_path) == ["best.pth", "last.pth"]
    assert (best.preempted_path, last.preempted_path) == (None, None)


@pytest.mark.slow
def test_two_runs_in_one_folder_have_a_preempted_file_each(tmp_path):
    runs = [start(tmp_path, "wait", f"{name}.pth", "fresh") for name in "ab"]
    for run in runs:
        assert run.stdout.readline() == "there\n"
    for run in runs:
        run.send_signal(signal.SIGTERM)
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    assert [finish(run)[0] for run in runs] == [143, 143]
    assert names(tmp_path) == ["a.pth", "b.pth", "preempted-v2.pth", "preempted.pth"]
    files = [tmp_path / "preempted-v2.pth", tmp_path / "preempted.pth"]
    expected = {run_id(tmp_path / "a.pth"), run_id(tmp_path / "b.pth")}
    assert {run_id(path) for path in files} == expected


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_is_succeeded(tmp_path):
    first = start(tmp_path, "wait")
    assert first.stdout.readline() == "there\n"
    code, _, err = finish(start(tmp_path, "go"))
    assert code == 1
    assert f"process {first.pid} on " in err
    other = start(tmp_path, "go", "other{epoch}.pth")
    assert finish(other)[0] == 0, "another template has another lock"
    first.send_signal(signal.SIGSTOP)
    assert f"process {first.pid} on " in finish(start(tmp_path, "go"))[2]
    first.kill()
    first.communicate()
    code, out, err = finish(start(tmp_path, "go"))
    assert (code, out.split("]")[0]) == (0, "[0, 1"), err
    assert not [name for name in names(tmp_path) if "lock" in name]


@pytest.mark.slow
def test_a_start_that_was_killed_before_its_first_whole_file_ends_as_if_it_had_not_been(tmp_path):
    arguments = ("{epoch}-{batch}-x.pth", "weights")
    assert finish(start(tmp_path / "whole", "go", *arguments))[0] == 0
    early = [sys.executable, "-c", SCRIPT.replace("== 6", "== 2"), str(tmp_path / "a"), "KILL"]
    killed = subprocess.run([*early, *arguments])
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path / "a") if "lock" not in name] in ([], ["w2.pth"])
    code, _, err = finish(start(tmp_path / "a", "go", *arguments))
    anew = "fit found no checkpoint to resume from: training begins anew.\n"
    assert (code, err) == (0, anew)
    assert names(tmp_path / "a") == names(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("takes_over", [True, False])
def test_a_process_that_was_taken_over_writes_no_more(tmp_path, takes_over):
    first = start(tmp_path, "wait", "{global_step}.pth")
    assert first.stdout.readline() == "there\n"
    (lock,) = tmp_path.glob("*.fitkit-lock")
    if takes_over:
        lock.write_text(lock.read_text().replace('"token": "', '"token": "new'))
    before = bytes_in(tmp_path)
    first.stdin.write("\n")
    code, _, err = finish(first)
    if takes_over:
        assert code == 1
        assert "another process has begun to train" in err
        assert bytes_in(tmp_path) == before
    else:
        assert code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_finished_run_in_a_read_only_folder_returns_its_history(tmp_path):
    train(3, *savers_of_all_kinds(tmp_path))
    if subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)]).returncode:
        pytest.skip("mounting is not possible here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path)], check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = train(3, *savers_of_all_kinds(tmp_path), resume=True)
        assert again.history.epoch == [0, 1, 2]
        with pytest.raises(fitkit.SaveError, match="Read-only"):
            train(4, *savers_of_all_kinds(tmp_path), resume=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
