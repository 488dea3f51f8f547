"""Saves behind training: what is written, what takes whose place, and that none is ever lost."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit import ModelCheckpoint, Retention, SaveError
from fitkit.checkpointing import archive, files
from fitkit.checkpointing.background import BackgroundWriter
from fitkit.core.tree import iterate_tensors
from fitkit.testing import differences

DATA = (torch.linspace(-1, 1, 24).reshape(12, 2), torch.linspace(0, 1, 12).reshape(12, 1))
LONGEST = 10.0  # seconds; nothing here waits so long unless it hangs


class Gate:
    """Stands before the writing of files behind training; names can be held, or made to fail."""

    def __init__(self, monkeypatch):
        self._real = files.write
        self._held: dict[str, threading.Event] = {}
        self._began: dict[str, threading.Event] = {}
        self.failing: set[str] = set()
        self.threads: dict[str, str] = {}
        self.contents: dict[str, object] = {}
        monkeypatch.setattr(files, "write", self)

    def hold(self, *names):
        for name in names:
            self._held[name] = threading.Event()
            self._began[name] = threading.Event()

    def open(self, *names):
        for name in names or self._held:
            self._held[name].set()

    def wait_until_begun(self, name):
        assert self._began[name].wait(LONGEST)

    def __call__(self, content, path, also=()):
        self.threads[path.name] = threading.current_thread().name
        self.contents[path.name] = content
        if path.name in self._held and threading.current_thread() is not threading.main_thread():
            self._began[path.name].set()
            assert self._held[path.name].wait(LONGEST)
        also = list(also)
        for one in (path, *also):
            if one.name in self.failing:
                raise SaveError(f"could not save to {str(one)!r}: made to fail.", one)
        self._real(content, path, also)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


@pytest.fixture
def opens_when_waited_for(monkeypatch, gate):
    """The gate opens at the moment when training waits for a save; counts how often it does."""
    waits = []

    def opening(real):
        def wait(self):
            if self.is_busy:
                waits.append(real.__name__)
                gate.open()
            real(self)

        return wait

    for real in (BackgroundWriter.wait, BackgroundWriter.wait_for_one):
        monkeypatch.setattr(BackgroundWriter, real.__name__, opening(real))
    return waits


@pytest.fixture
def join_writer(monkeypatch):
    """Waits for what is being written, as an observer: nobody is told of it."""
    writers, submit, wait = [], BackgroundWriter.submit, BackgroundWriter.wait

    def noted(self, job):
        writers.append(self)
        submit(self, job)

    monkeypatch.setattr(BackgroundWriter, "submit", noted)

    def join():
        for writer in writers:
            wait(writer)

    return join


class At(fitkit.Callback):
    """Does something before the training batch that follows so many."""

    order = -10

    def __init__(self, **actions):
        self.actions = {int(step[1:]): action for step, action in actions.items()}

    def on_train_batch_begin(self, batch, logs):
        action = self.actions.get(self.handler.state.global_step)
        if action is not None:
            action()


class Scores(fitkit.Callback):
    """Says what the score of each epoch is."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_begin(self, epoch, logs):
        self.log("score", self.values[epoch])


class Hears(fitkit.Callback):
    def __init__(self):
        self.heard = []

    def on_checkpoint_saved(self, path, logs):
        archive.verify(Path(path))
        self.heard.append((Path(path).name, threading.current_thread().name))


class Counts(fitkit.Callback):
    """Progress in containers that training goes on changing."""

    state_fields = ("seen", "nested")

    def __init__(self):
        self.seen = []
        self.nested = {"deep": {"values": [], "tensor": torch.zeros(3)}}

    def on_train_batch_end(self, batch, logs):
        self.seen.append(logs["loss"])
        self.nested["deep"]["values"].append(batch)
        self.nested["deep"]["tensor"] += 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(4, 1)
        self.tied = self.last
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 2))

    def forward(self, inputs):
        self.seen += 1
        return self.tied(self.drop(torch.relu(self.norm(self.first(inputs)))))


def make(model=nn.Linear, **arguments):
    arguments = arguments or ({"in_features": 2, "out_features": 1} if model is nn.Linear else {})
    handler = fitkit.NNHandler(model, seed=3, model_type="regression", **arguments)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(handler, callbacks, epochs=1, **options):
    """Four batches an epoch unless told otherwise."""
    options = {"batch_size": 3, "progress_bar": False, **options}
    return handler.fit(DATA, epochs=epochs, callbacks=callbacks, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def saver_state(path, name="ModelCheckpoint"):
    return archive.read(path)["callback_states"][name]["state"]


def every_batch(folder, **options):
    return ModelCheckpoint(folder / "{global_step}.pth", save_freq=1, background=True, **options)


def every_epoch(folder, **options):
    return ModelCheckpoint(folder / "{epoch}.pth", background=True, **options)


# ---- what is written ----------------------------------------------------------------------------


def rich(folder, actions, background, resume=None):
    """A run with everything that changes from batch to batch; saved in the middle of a window."""
    handler = make(Net)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, interval="step", step_size=1, gamma=0.9)
    handler.add_metric("mae", lambda outputs, targets: (outputs - targets).abs().mean())
    options = {"save_freq": 4, "background": background}
    savers = [
        ModelCheckpoint(folder / "{global_step}.pth", **options),
        ModelCheckpoint(folder / "w{global_step}.pth", save_weights_only=True, **options),
    ]
    fit(
        handler,
        [*savers, Counts(), At(**actions)],
        epochs=3,
        gradient_accumulation_steps=3,
        ema_decay=0.7,
        validation_data=DATA,
        resume=resume,
    )
    return handler


def test_what_is_written_is_the_moment_of_the_request_while_training_races_ahead(
    tmp_path, gate, join_writer
):
    gate.hold("4.pth")

    def release():
        assert not (tmp_path / "behind" / "4.pth").exists(), "nobody held it back"
        gate.open()
        join_writer()

    behind = rich(tmp_path / "behind", {"s7": release}, background=True)
    assert gate.threads["4.pth"] == "fitkit-save"
    at_once = rich(tmp_path / "now", {}, background=False)
    assert gate.threads["8.pth"] == "MainThread"
    expected = ["12.pth", "4.pth", "8.pth", "w12.pth", "w4.pth", "w8.pth"]
    assert names(tmp_path / "behind") == names(tmp_path / "now") == expected
    for name in expected:
        contents = [archive.read(tmp_path / run / name) for run in ("now", "behind")]
        assert list(differences(*contents)) == [], name
    assert list(differences(at_once.get_state_dict(), behind.get_state_dict())) == []
    # it does change, so that this test could fail
    early, late = (archive.read(tmp_path / "behind" / name) for name in ("4.pth", "8.pth"))
    changed = {path.split("]")[0] for path, _, _ in differences(early, late)}
    assert {
        "['model_state_dict'",
        "['optimizer_state_dict'",
        "['ema_state_dict'",
        "['rng'",
    } <= changed
    assert {"['callback_states'", "['scheduler_state_dict'", "['progress'"} <= changed
    assert early["callback_states"]["Counts"]["state"]["nested"]["deep"]["values"] == [0, 1, 2, 3]


def test_a_run_goes_on_from_each_file_as_if_nothing_had_happened(tmp_path, join_writer):
    waits = {f"s{step}": join_writer for step in range(1, 12)}  # so that no save is replaced
    uninterrupted = rich(tmp_path / "whole", waits, background=True)
    for name in ("4.pth", "8.pth", "12.pth"):
        resumed = rich(tmp_path / name, waits, True, resume=tmp_path / "whole" / name)
        left = differences(uninterrupted.get_state_dict(), resumed.get_state_dict())
        assert list(left) == []


def test_the_memory_of_the_copies_is_used_again_and_given_back(tmp_path, gate, join_writer):
    pointers, handler = [], make()

    def look():
        join_writer()
        content = gate.contents[f"{len(pointers) + 1}.pth"]
        found = (
            one for one in iterate_tensors(content) if one.shape == handler.module.weight.shape
        )
        pointers.append({one.data_ptr() for one in found})

    fit(handler, [every_batch(tmp_path), At(s1=look, s2=look, s3=look)])
    assert len(pointers) == 3
    assert pointers[0] == pointers[1] == pointers[2]
    assert len(pointers[0]) == 3, "the weight and its two moments"
    assert handler.module.weight.data_ptr() not in pointers[0]


def test_several_names_of_one_moment_are_written_once(tmp_path, gate):
    handler = make()
    savers = [
        ModelCheckpoint(tmp_path / f"{name}.pth", background=True) for name in ("a", "b", "c")
    ]
    fit(handler, savers)
    assert list(gate.contents) == ["a.pth"]
    assert names(tmp_path) == ["a.pth", "b.pth", "c.pth"]
    assert (tmp_path / "a.pth").samefile(tmp_path / "c.pth")


def test_a_saver_that_writes_at_once_waits_for_what_is_under_way(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("1.pth")
    hears = Hears()
    at_once = ModelCheckpoint(tmp_path / "now_{global_step}.pth", save_freq=2)
    fit(make(), [every_batch(tmp_path), at_once, hears])
    assert opens_when_waited_for
    order = [name for name, _ in hears.heard]
    assert order.index("1.pth") < order.index("2.pth")
    assert gate.threads["2.pth"] == "MainThread"
    assert (tmp_path / "2.pth").samefile(tmp_path / "now_2.pth")


def test_a_save_by_hand_waits_for_what_is_under_way(tmp_path, gate, opens_when_waited_for):
    gate.hold("1.pth")
    handler = make()
    existed = []

    def by_hand():
        handler.save(tmp_path / "hand.pth")
        existed.append((tmp_path / "1.pth").exists())

    saver = ModelCheckpoint(tmp_path / "1.pth", save_freq=1, background=True)
    fit(handler, [saver, At(s1=by_hand)], max_steps=2)
    assert existed == [True]
    archive.verify(tmp_path / "hand.pth")


# ---- who takes whose place ----------------------------------------------------------------------


def test_a_newer_save_takes_the_place_of_a_waiting_one(tmp_path, gate, join_writer):
    gate.hold("1.pth")
    saver = every_batch(tmp_path, retention=Retention(keep_last=9))
    seen = []

    def look():
        seen.append((names(tmp_path), saver.last_path, [name for name, _ in saver.kept]))

    def release():
        look()
        gate.open()
        join_writer()
        look()

    hears = Hears()
    fit(make(), [saver, hears, At(s1=look, s3=look, s4=release)], epochs=2, max_steps=5)
    assert seen == [
        ([], "1.pth", ["1.pth"]),
        ([], "3.pth", ["1.pth", "3.pth"]),
        ([], "4.pth", ["1.pth", "4.pth"]),
        (["1.pth", "4.pth"], "4.pth", ["1.pth", "4.pth"]),
    ]
    assert names(tmp_path) == ["1.pth", "4.pth", "5.pth"]
    assert [name for name, _ in hears.heard] == ["1.pth", "4.pth", "5.pth"]
    # each file knows of itself and of those that there really are
    for name, kept in [("1.pth", 1), ("4.pth", 2), ("5.pth", 3)]:
        state = saver_state(tmp_path / name)
        assert state["last_path"] == name
        assert [one for one, _ in state["kept"]] == ["1.pth", "4.pth", "5.pth"][:kept]


def test_what_a_replaced_save_was_to_remove_goes_with_the_newer_one(tmp_path, gate, join_writer):
    gate.hold("2.pth")

    def release():
        assert names(tmp_path) == ["1.pth"], "gone before a newer one was durable"
        gate.open()
        join_writer()

    saver = every_batch(tmp_path, max_to_keep=1)
    fit(make(), [saver, At(s1=join_writer, s4=release)], epochs=2, max_steps=5)
    assert names(tmp_path) == ["5.pth"]
    assert saver.kept == [["5.pth", None]]


def test_the_files_of_another_saver_are_not_given_up_for_a_newer_save(
    tmp_path, gate, opens_when_waited_for
):
    """Both wait in one job; only one of them asks again."""
    gate.hold("1.pth")
    rare = ModelCheckpoint(tmp_path / "rare_{global_step}.pth", save_freq=2, background=True)
    fit(make(), [every_batch(tmp_path), rare])
    assert opens_when_waited_for
    assert {"rare_2.pth", "2.pth", "rare_4.pth", "4.pth"} <= set(names(tmp_path))


@pytest.mark.parametrize(
    ("scores", "waits"),
    [
        ((0.5, 0.9, 0.7, 0.1), True),  # the waiting one is the best there is
        ((0.5, 0.9, 0.9, 0.1), False),  # equal is not better
        ((0.5, 0.6, 0.7, 0.8), False),
        ((0.5, math.nan, 0.7, 0.1), False),
    ],
)
def test_a_waiting_save_that_is_better_is_waited_for(
    tmp_path, gate, opens_when_waited_for, scores, waits
):
    gate.hold("1.pth")
    retention = Retention(keep_best=1, monitor="score", mode="max")
    saver = every_epoch(tmp_path, retention=retention)
    at_third = []
    look = At(s3=lambda: at_third.append(list(opens_when_waited_for)))
    fit(make(), [saver, Scores(*scores), look], epochs=4, steps_per_epoch=1)
    assert bool(at_third[0]) == waits
    best = max(score for score in scores if math.isfinite(score))
    # the second of two equal ones took the place of the first, which was not yet written
    kept = {f"{epoch + 1}.pth" for epoch, score in enumerate(scores) if score == best}
    assert len(kept & set(names(tmp_path))) == 1
    assert set(names(tmp_path)) == {*(kept & set(names(tmp_path))), "4.pth"}


def test_a_waiting_save_that_is_better_than_one_that_is_not_finite_is_waited_for(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("1.pth")
    retention = Retention(keep_best=1, monitor="score", mode="max")
    scores = Scores(0.5, 0.9, math.nan, 0.1)
    fit(make(), [every_epoch(tmp_path, retention=retention), scores], epochs=4, steps_per_epoch=1)
    assert "2.pth" in names(tmp_path)


def test_a_waiting_save_that_is_kept_for_good_is_waited_for(tmp_path, gate, opens_when_waited_for):
    gate.hold("1.pth")
    saver = every_epoch(tmp_path, retention=Retention(keep_last=1, keep_every_n_epochs=2))
    fit(make(), [saver], epochs=5, steps_per_epoch=1)
    assert {"2.pth", "4.pth", "5.pth"} <= set(names(tmp_path))
    assert opens_when_waited_for


def test_with_time_to_write_the_folder_is_the_same_as_without_background(tmp_path):
    """Waiting before each batch, no save is replaced: the files and what they hold are the same."""
    scores = (0.3, 0.8, math.nan, 0.2, 0.9, 0.9, 0.1)

    def savers(folder, background):
        keep = {"mode": "max", "background": background}
        return [
            ModelCheckpoint(folder / "top_{epoch}.pth", "score", max_to_keep=2, **keep),
            ModelCheckpoint(folder / "best.pth", "score", save_best_only=True, **keep),
            ModelCheckpoint(
                folder / "r_{epoch}.pth", "score",
                retention=Retention(keep_last=2, keep_best=1, keep_every_n_epochs=3), **keep,
            ),
            ModelCheckpoint(folder / "w.pth", "score", True, True, **keep),
        ]  # fmt: skip

    class Waits(fitkit.Callback):
        def on_train_batch_begin(self, batch, logs):
            self.handler.wait_for_saves()

    for background in (False, True):
        folder = tmp_path / str(background)
        fit(make(), [*savers(folder, background), Scores(*scores), Waits()], epochs=7)
    assert names(tmp_path / "True") == names(tmp_path / "False")
    for name in names(tmp_path / "True"):
        contents = [archive.read(tmp_path / folder / name) for folder in ("False", "True")]
        assert list(differences(*contents)) == [], name


# ---- being told ---------------------------------------------------------------------------------


def test_each_file_is_announced_once_in_the_main_thread(tmp_path, gate, join_writer):
    gate.hold("1.pth")
    hears = Hears()

    def release():
        gate.open()
        join_writer()

    savers = [every_batch(tmp_path), ModelCheckpoint(tmp_path / "last.pth", background=True)]
    fit(make(), [*savers, hears, At(s2=release)], epochs=1)
    told = [name for name, _ in hears.heard]
    assert sorted(told) == names(tmp_path)
    assert {thread for _, thread in hears.heard} == {"MainThread"}


def test_waiting_for_saves_leaves_none_under_way_and_tells_of_them(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("1.pth")
    handler, hears, found = make(), Hears(), []

    def wait():
        handler.wait_for_saves()
        found.append((names(tmp_path), [name for name, _ in hears.heard]))

    fit(handler, [every_batch(tmp_path), hears, At(s2=wait)])
    assert found == [(["1.pth", "2.pth"], ["1.pth", "2.pth"])]
    handler.wait_for_saves()  # with nothing under way it returns at once


# ---- how training ends --------------------------------------------------------------------------


class Boom(fitkit.Callback):
    def __init__(self, action):
        self.action = action

    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == 3:
            self.action()


def raise_(error):
    raise error


ENDS = {
    "returns": (lambda: None, contextlib.nullcontext),
    "raises": (lambda: raise_(ZeroDivisionError), lambda: pytest.raises(ZeroDivisionError)),
    "interrupted": (lambda: raise_(KeyboardInterrupt), contextlib.nullcontext),
    "ctrl_c": (lambda: os.kill(os.getpid(), signal.SIGINT), contextlib.nullcontext),
    "sigterm": (
        lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: pytest.raises(fitkit.Preempted)
    ),
    "exit": (lambda: raise_(SystemExit(3)), lambda: pytest.raises(SystemExit)),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_fit_ends_with_no_save_unfinished(tmp_path, gate, opens_when_waited_for, end):
    """One save is being written and one waits when training ends in whatever way."""
    action, expected = ENDS[end]
    gate.hold("1.pth")
    saver, handler, hears = every_batch(tmp_path), make(), Hears()
    with expected():
        fit(handler, [saver, Boom(action), hears], max_steps=3)
    assert opens_when_waited_for
    assert not handler.saves.is_busy
    assert not [one for one in threading.enumerate() if one.name.startswith("fitkit-save")]
    # an exception in the hook cuts the third batch's event short: its save was not asked for
    last = "3.pth" if end in ("returns", "ctrl_c", "sigterm") else "2.pth"
    assert {"1.pth", last} <= set(names(tmp_path))
    assert saver.last_path == last
    told = {name for name, _ in hears.heard}
    assert told == set(names(tmp_path))
    for path in tmp_path.iterdir():
        archive.verify(path)
    if end == "sigterm":
        state = archive.read(tmp_path / "preempted.pth")
        assert state["progress"]["state"]["global_step"] == 3


def test_a_run_that_was_preempted_goes_on_exactly(tmp_path, gate, opens_when_waited_for):
    gate.hold("2.pth")
    kill = Boom(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def train(folder, *more, **options):
        saver = ModelCheckpoint(
            folder / "{global_step}.pth", save_freq=2, background=True, max_to_keep=2
        )
        handler = make()
        fit(handler, [saver, *more], epochs=2, **options)
        return handler

    whole = train(tmp_path / "whole")
    with pytest.raises(fitkit.Preempted):
        train(tmp_path / "run", kill)
    assert names(tmp_path / "run") == ["2.pth", "preempted.pth"]
    again = train(tmp_path / "run", resume=tmp_path / "run")
    assert again.history.history == whole.history.history
    weights = [handler.get_state_dict()["model_state_dict"] for handler in (whole, again)]
    assert list(differences(*weights)) == []
    assert "preempted.pth" not in names(tmp_path / "run"), "a newer one is durable"
    assert "8.pth" in names(tmp_path / "run")


# ---- failing ------------------------------------------------------------------------------------


def test_an_error_surfaces_at_the_next_save(tmp_path, gate, join_writer):
    gate.failing = {"1.pth"}
    steps, handler = [], make()
    saver = every_batch(tmp_path)
    count = fitkit.LambdaCallback(on_train_batch_begin=lambda batch, logs: steps.append(batch))
    with pytest.raises(SaveError, match=r"1\.pth.*made to fail") as caught:
        fit(handler, [saver, count, At(s1=join_writer)], epochs=3)
    assert steps == [0, 1], "not at the very next event"
    assert any("as it was before" in note for note in caught.value.__notes__)
    assert (saver.last_path, saver.last_step, saver.kept) == (None, -1, [])
    assert names(tmp_path) == []


def test_an_error_surfaces_at_the_end_of_fit(tmp_path, gate, opens_when_waited_for, join_writer):
    gate.hold("4.pth")
    gate.failing = {"4.pth"}
    saver = every_batch(tmp_path)
    with pytest.raises(SaveError, match=r"4\.pth"):
        fit(make(), [saver, At(s1=join_writer, s2=join_writer, s3=join_writer)])
    assert saver.last_path == "3.pth"
    assert names(tmp_path) == ["1.pth", "2.pth", "3.pth"]


def test_an_error_surfaces_where_one_waits_for_saves(tmp_path, gate):
    gate.failing = {"1.pth"}
    handler, raised = make(), []

    def wait():
        with pytest.raises(SaveError, match=r"1\.pth"):
            handler.wait_for_saves()
        raised.append(True)
        handler.wait_for_saves()

    fit(handler, [every_batch(tmp_path), At(s1=wait)])
    assert raised == [True]
    assert "1.pth" not in names(tmp_path)
    assert "4.pth" in names(tmp_path)


def test_with_warn_training_goes_on_and_the_saver_is_as_before(tmp_path, gate, join_writer):
    gate.failing = {"2.pth"}
    saver = every_batch(tmp_path, on_error="warn", retention=Retention(keep_last=9))
    stages = []

    def look():
        join_writer()
        stages.append([saver.last_path, [name for name, _ in saver.kept]])

    with pytest.warns(RuntimeWarning, match=r"2\.pth.*Training goes on") as caught:
        fit(make(), [saver, At(s1=look, s2=look, s3=look)])
    assert len(caught) == 1
    assert stages[0] == ["1.pth", ["1.pth"]]
    assert stages[2] == ["3.pth", ["1.pth", "3.pth"]]
    assert names(tmp_path) == ["1.pth", "3.pth", "4.pth"]
    assert [name for name, _ in saver_state(tmp_path / "4.pth")["kept"]] == [
        "1.pth", "3.pth", "4.pth"
    ]  # fmt: skip


def test_a_save_that_waited_for_one_that_failed_tells_what_there_is(tmp_path, gate, join_writer):
    """It was planned in the belief that the one before would be there, and old ones be gone."""
    gate.hold("2.pth")
    gate.failing = {"2.pth"}

    def release():
        gate.wait_until_begun("2.pth")
        gate.open()
        join_writer()

    saver = every_batch(tmp_path, on_error="warn", max_to_keep=2)
    with pytest.warns(RuntimeWarning, match=r"2\.pth"):
        fit(make(), [saver, At(s1=join_writer, s3=release)])
    assert names(tmp_path) == ["3.pth", "4.pth"]
    assert saver.kept == [["3.pth", None], ["4.pth", None]]
    state = saver_state(tmp_path / "3.pth")
    assert state["kept"] == [["1.pth", None], ["3.pth", None]]
    assert state["last_path"] == "3.pth"
    assert archive.read(tmp_path / "3.pth")["progress"]["state"]["global_step"] == 3


def test_the_file_of_another_saver_does_not_tell_of_a_save_that_failed(tmp_path, gate, join_writer):
    gate.hold("a2.pth")
    gate.failing = {"a2.pth"}
    failing = ModelCheckpoint(
        tmp_path / "a{global_step}.pth", save_freq=2, on_error="warn", background=True,
        max_to_keep=1,
    )  # fmt: skip
    other = ModelCheckpoint(
        tmp_path / "b{global_step}.pth",
        save_freq=3,
        background=True,
        retention=Retention(keep_last=9),
    )

    def release():
        gate.wait_until_begun("a2.pth")
        gate.open()
        join_writer()

    with pytest.warns(RuntimeWarning, match=r"a2\.pth"):
        fit(make(), [failing, other, At(s3=release)])
    assert names(tmp_path) == ["a4.pth", "b3.pth"]
    states = archive.read(tmp_path / "b3.pth")["callback_states"].values()
    told = {entry["identity"]: entry["state"] for entry in states}
    state = told[failing.identity()]
    assert (state["last_path"], state["kept"]) == (None, [])


def test_no_save_is_lost_when_one_of_several_files_fails_while_two_more_follow(
    tmp_path, gate, monkeypatch
):
    gate.hold("a1.pth", "b1.pth")
    gate.failing = {"a1.pth"}
    real = BackgroundWriter.wait_for_one
    held = iter(["a1.pth", "b1.pth"])

    def wait_for_one(self):
        gate.open(next(held))
        real(self)

    monkeypatch.setattr(BackgroundWriter, "wait_for_one", wait_for_one)
    lasting = Retention(keep_every_n_epochs=1)
    savers = [
        ModelCheckpoint(
            tmp_path / (name + "{epoch}.pth"), background=True, retention=lasting, on_error="warn"
        )
        for name in ("a", "b")
    ]
    opens = fitkit.LambdaCallback(on_train_end=lambda logs: gate.open())
    with pytest.warns(RuntimeWarning, match=r"a1\.pth"):
        fit(make(), [*savers, opens], epochs=3, steps_per_epoch=1)
    assert names(tmp_path) == ["a2.pth", "a3.pth", "b1.pth", "b2.pth", "b3.pth"]


def test_a_save_that_failed_does_not_keep_the_last_one_before_the_end_from_being_made(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("3.pth")
    gate.failing = {"3.pth"}
    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", save_freq=3, background=True)
    kill = Boom(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(fitkit.Preempted) as caught:
        fit(make(), [saver, kill])
    assert any("3.pth" in note for note in caught.value.__notes__)
    assert names(tmp_path) == ["preempted.pth"]
    archive.verify(tmp_path / "preempted.pth")


def test_a_save_that_failed_long_before_the_process_is_ended(tmp_path, gate, join_writer):
    gate.failing = {"3.pth"}
    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", save_freq=3, background=True)

    class Kill(fitkit.Callback):
        order = 99

        def on_train_batch_end(self, batch, logs):
            if self.handler.state.global_step == 4:
                join_writer()
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises((SaveError, fitkit.Preempted)):
        fit(make(), [saver, Kill()])
    assert set(names(tmp_path)) <= {"preempted.pth"}


def test_nobody_has_asked_for_anything_after_a_failed_fit(tmp_path, gate, join_writer):
    """What is still asked for would be in the next snapshot, and a resume would answer it."""
    gate.failing = {"a1.pth"}
    savers = [
        ModelCheckpoint(tmp_path / "a{global_step}.pth", save_freq=1, background=True),
        ModelCheckpoint(tmp_path / "b{global_step}.pth", save_freq=2, background=True),
    ]
    with pytest.raises(SaveError):
        fit(make(), [*savers, At(s1=join_writer)])
    assert [saver.asked for saver in savers] == [(), ()]
    assert [saver.writing for saver in savers] == [(), ()]


# ---- killed -------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, threading, time, traceback, warnings
from pathlib import Path
import torch
from torch import nn
import fitkit
from fitkit.checkpointing import archive
from fitkit.testing import differences
torch.set_num_threads(1)
root, endings = Path(sys.argv[1]), int(sys.argv[2])
SOURCES = str(Path(fitkit.__file__).parent)


torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # what it imports takes a second


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 60, bias=False), nn.BatchNorm1d(60), nn.Dropout(0.4),
                         nn.Linear(60, 2))


class Seen(fitkit.Callback):
    state_fields = ("seen",)

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, batch, logs):
        self.seen = [*self.seen, logs["loss"] + random.random()]


def script():
    handler = fitkit.NNHandler(Net, seed=7)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    data = torch.arange(132.0).reshape(22, 6).sin()
    data = (data, (data.sum(1) > 0).long())
    keep = fitkit.Retention(keep_last=2, keep_best=1, monitor="val_loss", keep_every_n_epochs=2)
    savers = [
        fitkit.ModelCheckpoint("run/b{global_step:03d}.pth", save_freq=1, max_to_keep=2,
                               background=True),
        fitkit.ModelCheckpoint("run/{epoch}.pth", retention=keep, background=True),
        fitkit.ModelCheckpoint("run/w.pth", "val_loss", True, True, background=True),
    ]
    handler.fit(data, epochs=6, batch_size=4, validation_data=data, resume="run",
                callbacks=[*savers, fitkit.EMA(0.8), Seen()], gradient_accumulation_steps=4,
                progress_bar=False)
    weights = handler.get_state_dict()
    kept = {name: weights[name] for name in ("model_state_dict", "optimizer_state_dict", "history",
                                             "ema_state_dict", "rng", "progress")}
    kept["seen"] = [s["state"]["seen"] for s in weights["callback_states"].values()
                    if s["name"] == "Seen"]
    torch.save(kept, "end.pt")


class Killer:
    # kills its own process on the n-th line of fitkit that is executed, in whatever thread
    def __init__(self, line):
        self.left = line

    def trace(self, frame, event, argument):
        return self.local if frame.f_code.co_filename.startswith(SOURCES) else None

    def local(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.local


def start(folder, line=None, count=None):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        if line or count:
            killer = Killer(line or sys.maxsize)
            threading.settrace(killer.trace)
            sys.settrace(killer.trace)
        warnings.simplefilter("error")
        torch.manual_seed(os.getpid())
        random.seed(os.getpid())
        script()
        if count:
            count.write_text(str(sys.maxsize - killer.left))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def ended(pid):
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the script failed after a kill")
    return os.WIFEXITED(status)


(root / "whole").mkdir()
began = time.monotonic()
assert ended(start(root / "whole"))
seconds = time.monotonic() - began
(root / "counted").mkdir()
assert ended(start(root / "counted", count=root / "lines"))
lines = int((root / "lines").read_text())
expected = torch.load(root / "whole" / "end.pt")
rng, kills = random.Random(0), 0
for ending in range(endings):
    folder = root / str(ending)
    folder.mkdir()
    for attempt in range(6):
        if attempt == 5:
            pid = start(folder)
        elif attempt % 2:
            pid = start(folder)
            time.sleep(rng.uniform(0.1, 0.9) * seconds)
            os.kill(pid, signal.SIGKILL)
        else:
            pid = start(folder, rng.randrange(lines // 10, lines * 8 // 10))
        if ended(pid):
            break
        kills += 1
        found = list((folder / "run").iterdir()) if (folder / "run").exists() else []
        for path in found:
            if path.suffix == ".pth":
                archive.verify(path)
    for path, wanted, found in differences(expected, torch.load(folder / "end.pt")):
        raise SystemExit(f"ending {ending} after {kills} kills: {path} differs")
    names = sorted(path.name for path in (folder / "run").iterdir())
    left = [name for name in names if name.endswith(".fitkit-tmp")]
    lasting = {"2.pth", "4.pth", "6.pth"} - set(names)
    if left or lasting or len(names) > 10:
        raise SystemExit(f"ending {ending} after {kills} kills: {names}")
    for path in (folder / "run").iterdir():
        archive.verify(path)
print(kills)
"""


def test_a_run_that_is_killed_at_any_moment_goes_on_exactly(tmp_path):
    """Real kills, of real processes that save behind training all the time."""
    found = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "3"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(found.stdout) >= 3, "the first start of each ending does not survive"
