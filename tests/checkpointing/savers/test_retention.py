"""Which files are kept: the rules by themselves, and what is in the folder after a run."""

from __future__ import annotations

import math
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fitkit
from fitkit import AutoSaver, ConfigurationError, ModelCheckpoint, Retention
from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.checkpointing.savers.retention import resolve_retention
from fitkit.checkpointing.storage import safe_load

DATA = (torch.zeros(2, 2), torch.zeros(2, 1))

values = st.one_of(
    st.none(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),  # so that there are ties
    st.floats(-10, 10),
)
kept_lists = st.lists(values, max_size=9).map(
    lambda found: [[f"{number}.pth", value] for number, value in enumerate(found)]
)
counts = st.one_of(st.none(), st.integers(1, 4))
modes = st.sampled_from(["min", "max"])


def beats(kept, number, other, mode):
    """Whether the file ``number`` ranks before ``other``: better, or as good and older."""
    one, two = kept[number][1], kept[other][1]
    if one == two:
        return number < other
    return one < two if mode == "min" else one > two


def wanted(kept, keep_last, keep_best, mode):
    """The rules, read off their description and not off the code."""
    names = [name for name, _ in kept]
    found = set(names[-1:])
    if keep_last is not None:
        found |= set(names[len(names) - min(keep_last, len(names)) :])
    if keep_best is not None:
        ranked = [n for n, (_, value) in enumerate(kept) if value is not None]
        ranked = [n for n in ranked if math.isfinite(kept[n][1])]
        for n in ranked:
            better = sum(beats(kept, other, n, mode) for other in ranked if other != n)
            if better < keep_best:
                found.add(names[n])
    return found


@settings(max_examples=400)
@given(kept_lists, counts, counts, modes)
def test_obsolete_is_what_no_rule_wants(kept, keep_last, keep_best, mode):
    if keep_last is None and keep_best is None:
        keep_last = 1
    rules = Retention(keep_last, keep_best, monitor="value", mode=mode)
    before = [list(entry) for entry in kept]
    obsolete = rules.obsolete(kept)
    assert set(obsolete) == {name for name, _ in kept} - wanted(kept, keep_last, keep_best, mode)
    assert obsolete == [name for name, _ in kept if name in obsolete], "the oldest first"
    assert str(kept) == str(before), "the argument was changed"


@settings(max_examples=100)
@given(kept_lists, counts, counts, modes)
def test_what_stays_is_stable_and_never_more_than_was_asked_for(kept, keep_last, keep_best, mode):
    if keep_last is None and keep_best is None:
        keep_best = 1
    rules = Retention(keep_last, keep_best, monitor="value", mode=mode)
    stays = [entry for entry in kept if entry[0] not in rules.obsolete(kept)]
    assert rules.obsolete(stays) == []
    assert len(stays) <= max(keep_last or 1, 1) + (keep_best or 0)
    assert stays[-1:] == kept[-1:]


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 40)))
def test_every_nth_epoch_lasts(every, epochs_done):
    rules = Retention(keep_every_n_epochs=every)
    assert rules.is_lasting(epochs_done) == (epochs_done is not None and epochs_done % every == 0)
    assert not Retention(keep_last=1).is_lasting(epochs_done)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "needs a rule"),
        ({"monitor": "loss"}, "needs a rule"),
        ({"keep_last": 0}, "keep_last"),
        ({"keep_last": -1}, "keep_last"),
        ({"keep_last": True}, "keep_last"),
        ({"keep_last": 1.5}, "keep_last"),
        ({"keep_last": "1"}, "keep_last"),
        ({"keep_best": 0, "monitor": "loss"}, "keep_best"),
        ({"keep_every_n_epochs": 0}, "keep_every_n_epochs"),
        ({"keep_best": 1, "monitor": "happiness"}, "pass mode='min' or mode='max'"),
        ({"keep_best": 1, "monitor": "loss", "mode": "least"}, "mode must be"),
        ({"keep_best": 1, "monitor": ""}, "monitor must be"),
        ({"keep_last": 1, "monitor": 7}, "monitor must be"),
    ],
)
def test_rules_that_mean_nothing(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        Retention(**options)


def test_what_a_savers_arguments_mean():
    assert resolve_retention(None, None, "loss", "auto") is None
    assert resolve_retention(None, 3, None, "auto") == Retention(keep_last=3)
    best = Retention(keep_best=3, monitor="acc", mode="max")
    assert resolve_retention(None, 3, "acc", "max") == best
    own = Retention(keep_best=2, monitor="loss")
    assert resolve_retention(own, None, "acc", "max") is own
    lent = resolve_retention(Retention(keep_last=1, keep_best=2), None, "acc", "max")
    assert lent == Retention(keep_last=1, keep_best=2, monitor="acc", mode="max")
    last = Retention(keep_last=2)
    assert resolve_retention(last, None, None, "auto") is last


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((Retention(keep_last=1), 2, None, "auto"), "cannot be given as well"),
        ((Retention(keep_best=1), None, None, "auto"), "pass monitor="),
        (("last", None, None, "auto"), "must be a fitkit.Retention"),
        (({"keep_last": 1}, None, None, "auto"), "must be a fitkit.Retention"),
        ((None, 0, None, "auto"), "max_to_keep"),
        ((None, True, None, "auto"), "max_to_keep"),
    ],
)
def test_savers_arguments_that_contradict_each_other(arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        resolve_retention(*arguments)


@pytest.mark.parametrize(
    "make_saver",
    [
        lambda: ModelCheckpoint("a.pth", retention=Retention(keep_last=1), max_to_keep=1),
        lambda: ModelCheckpoint("a.pth", retention=Retention(keep_best=1)),
        lambda: ModelCheckpoint("a.pth", retention=3),
        lambda: AutoSaver(1, retention=Retention(keep_last=1), overwrite_last_saved=True),
        lambda: AutoSaver(1, retention=Retention(keep_best=1)),
        lambda: AutoSaver(1, retention="last"),
    ],
)
def test_savers_refuse_rules_that_contradict_each_other(make_saver):
    with pytest.raises(ConfigurationError):
        make_saver()


# ---- end to end ---------------------------------------------------------------------------------

SCORES = [0.5, 0.9, 0.7, math.nan, 0.9, 0.2, 0.8, math.inf, 0.1]


class Scores(fitkit.Callback):
    def on_epoch_begin(self, epoch, logs):
        self.log("score", SCORES[epoch])


def make():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(lambda outputs, targets: (outputs + 1).square().mean())
    return handler


def run(saver, epochs, *more, **options):
    """One batch an epoch."""
    handler = make()
    handler.fit(
        DATA, epochs=epochs, callbacks=[saver, Scores(), *more], progress_bar=False, **options
    )
    return handler


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def epochs_in(folder):
    return {int(path.stem) for path in folder.iterdir()}


def model_checkpoint(folder, rules):
    return ModelCheckpoint(folder / "{epoch}.pth", retention=rules)


def auto_saver(folder, rules):
    return AutoSaver(1, folder, "{epoch}", retention=rules)


def best(number):
    return {"keep_best": number, "monitor": "score", "mode": "max"}


# of SCORES: the best two are 2 and 5 (equal: the older first), then 7, then 3
COMBINATIONS = [
    ({"keep_last": 1}, {9}),
    ({"keep_last": 3}, {7, 8, 9}),
    (best(1), {2, 9}),
    (best(2), {2, 5, 9}),
    (best(3), {2, 5, 7, 9}),
    ({"keep_last": 2, **best(1)}, {2, 8, 9}),
    ({"keep_every_n_epochs": 4}, {4, 8, 9}),
    ({"keep_every_n_epochs": 1}, set(range(1, 10))),
    ({"keep_last": 1, "keep_every_n_epochs": 4, **best(1)}, {2, 4, 8, 9}),
]


@pytest.mark.parametrize("make_saver", [model_checkpoint, auto_saver])
@pytest.mark.parametrize(("rules", "expected"), COMBINATIONS, ids=str)
def test_the_folder_after_a_run(tmp_path, make_saver, rules, expected):
    run(make_saver(tmp_path, Retention(**rules)), 9)
    assert epochs_in(tmp_path) == expected
    for path in tmp_path.iterdir():
        safe_load.verify(path)


@pytest.mark.parametrize("epoch", range(1, 10))
@pytest.mark.parametrize(
    ("rules", "keep_last", "keep_best"),
    [({"keep_last": 2}, 2, None), (best(2), None, 2), ({"keep_last": 2, **best(1)}, 2, 1)],
    ids=["last", "best", "both"],
)
def test_the_folder_after_each_epoch(tmp_path, epoch, rules, keep_last, keep_best):
    run(model_checkpoint(tmp_path, Retention(**rules)), epoch)
    kept = [[number + 1, score] for number, score in enumerate(SCORES[:epoch])]
    # what went at one epoch does not come back when a rule would want it later: none does
    assert epochs_in(tmp_path) == wanted(kept, keep_last, keep_best, "max")


def test_a_file_kept_for_good_counts_as_the_newest(tmp_path):
    run(model_checkpoint(tmp_path, Retention(keep_last=1, keep_every_n_epochs=2)), 2)
    assert epochs_in(tmp_path) == {2}


def test_ranking_by_a_value_of_validation(tmp_path):
    rules = Retention(keep_best=1, monitor="val_loss")
    handler = make()
    handler.fit(
        DATA, epochs=5, validation_data=DATA, validate_every=2, progress_bar=False,
        callbacks=[model_checkpoint(tmp_path, rules)],
    )  # fmt: skip
    assert handler.val_losses[1] < handler.val_losses[0]
    assert epochs_in(tmp_path) == {4, 5}


def test_a_name_that_is_not_logged_is_an_error(tmp_path):
    rules = Retention(keep_best=1, monitor="scor", mode="max")
    with pytest.raises(fitkit.MonitorError, match="Did you mean 'score'"):
        run(model_checkpoint(tmp_path, rules), 2)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("make_saver", [model_checkpoint, auto_saver])
@pytest.mark.parametrize(
    "rules",
    [{"keep_last": 2}, best(2), {"keep_last": 1, "keep_every_n_epochs": 4, **best(1)}],
    ids=["last", "best", "all"],
)
def test_with_a_resume_in_the_middle_the_folder_ends_as_if_uninterrupted(
    tmp_path, make_saver, rules, cut
):
    class Dies(fitkit.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == cut:
                raise ZeroDivisionError

    rules = Retention(**rules)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(make_saver(whole, rules), 9)
    with pytest.raises(ZeroDivisionError):
        run(make_saver(parts, rules), 9, Dies())
    run(make_saver(parts, rules), 9, resume=parts)
    assert names(parts) == names(whole)
    saver_states = [
        safe_load.read(folder / "9.pth")["callback_states"] for folder in (whole, parts)
    ]
    assert str(saver_states[0]) == str(saver_states[1])


def test_a_folder_that_was_moved_goes_on_and_the_old_place_is_left_alone(tmp_path):
    rules = Retention(keep_last=2, **best(1))
    run(model_checkpoint(tmp_path / "old", rules), 4)
    assert epochs_in(tmp_path / "old") == {2, 3, 4}
    shutil.copytree(tmp_path / "old", tmp_path / "new" / "name")
    run(model_checkpoint(tmp_path / "new" / "name", rules), 6, resume=tmp_path / "new" / "name")
    assert epochs_in(tmp_path / "new" / "name") == {2, 5, 6}
    assert epochs_in(tmp_path / "old") == {2, 3, 4}


def test_what_the_run_did_not_write_is_never_removed(tmp_path):
    run(model_checkpoint(tmp_path / "other", Retention(keep_last=9)), 2)
    for number in (1, 2):
        shutil.copy(tmp_path / "other" / f"{number}.pth", tmp_path / f"0{number}.pth")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "0.pth").write_text("no checkpoint at all")
    run(model_checkpoint(tmp_path, Retention(keep_last=1)), 3)
    assert names(tmp_path) == ["0.pth", "01.pth", "02.pth", "3.pth", "notes.txt", "other"]


@pytest.mark.filterwarnings("ignore:.*was to be removed")
def test_what_is_no_checkpoint_any_more_is_left_alone(tmp_path):
    """Somebody put another file, or a folder, where a checkpoint was."""

    class Replaces(fitkit.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 1:
                (tmp_path / "1.pth").write_text("mine now")
            if epoch == 2:
                os.remove(tmp_path / "2.pth")
                (tmp_path / "2.pth").mkdir()

    run(model_checkpoint(tmp_path, Retention(keep_last=1)), 4, Replaces())
    assert (tmp_path / "1.pth").read_text() == "mine now"
    assert (tmp_path / "2.pth").is_dir()
    assert names(tmp_path) == ["1.pth", "2.pth", "4.pth"]


def test_a_file_that_is_gone_already_is_no_problem(tmp_path):
    class Removes(fitkit.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch:
                os.remove(tmp_path / f"{epoch}.pth")

    run(model_checkpoint(tmp_path, Retention(keep_last=1)), 3, Removes())
    assert names(tmp_path) == ["3.pth"]


# ---- the file that a run came from --------------------------------------------------------------


def weights_only(folder, **options):
    return ModelCheckpoint(folder / "{epoch}.pth", save_weights_only=True, **options)


@pytest.mark.parametrize("background", [False, True])
def test_weights_do_not_take_the_place_of_the_file_that_a_run_came_from(tmp_path, background):
    run(ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1), 2)
    assert names(tmp_path) == ["2.pth"]
    saver = weights_only(tmp_path, max_to_keep=1, background=background)
    run(saver, 5, resume=tmp_path / "2.pth")
    assert names(tmp_path) == ["2.pth", "5.pth"], "the only file to resume from is gone"
    assert read_metadata(tmp_path / "2.pth").epoch == 2
    handler = run(weights_only(tmp_path, max_to_keep=1), 6, resume=tmp_path / "2.pth")
    assert handler.history.epoch == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("background", [False, True])
def test_the_file_a_run_came_from_goes_when_another_saver_has_written_a_full_one(
    tmp_path, background
):
    run(ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1), 2)
    saver = weights_only(tmp_path, max_to_keep=1, background=background)
    full = ModelCheckpoint(tmp_path / "full" / "{epoch}.pth", save_freq=4, background=background)
    seen = []

    class Looks(fitkit.Callback):
        def on_epoch_begin(self, epoch, logs):
            self.handler.wait_for_saves()
            seen.append("2.pth" in names(tmp_path))

    with pytest.warns(UserWarning, match="handed out by their order"):
        run(saver, 6, full, Looks(), resume=tmp_path / "2.pth")
    # the full one is written at the end of epoch 4, together with the weights of that epoch
    assert seen[:2] == [True, True]
    assert names(tmp_path) == ["6.pth", "full"]


def test_the_file_a_run_came_from_is_kept_by_another_name_of_its_folder(tmp_path):
    run(ModelCheckpoint(tmp_path / "runs" / "{epoch}.pth", max_to_keep=1), 2)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    run(weights_only(tmp_path / "link", max_to_keep=1), 4, resume=tmp_path / "link")
    assert names(tmp_path / "runs") == ["2.pth", "4.pth"]


def test_the_file_a_run_came_from_stays_when_every_save_fails(tmp_path, monkeypatch):
    from fitkit.checkpointing.storage import atomic_write

    run(ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1), 2)

    def write(content, path, also=(), record=None):
        raise fitkit.SaveError(f"could not save to {path}", path)

    monkeypatch.setattr(atomic_write, "write", write)
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1, on_error="warn")
    with pytest.warns(RuntimeWarning, match="Training goes on"):
        run(saver, 5, resume=True)
    assert names(tmp_path) == ["2.pth"]
    assert saver.last_path == "2.pth"
