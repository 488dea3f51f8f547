"""Asynchronous saves: what is written, one at a time, and that none is ever lost."""

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
from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.core.tree import iterate_tensors
from fitkit.runtime.background_thread import BackgroundThread
from fitkit.testing import differences

DATA = (torch.linspace(-1, 1, 24).reshape(12, 2), torch.linspace(0, 1, 12).reshape(12, 1))
LONGEST = 10.0  # seconds; nothing here waits so long unless it hangs


class Gate:
    """Stands before the writing of files behind training; names can be held, or made to fail."""

    def __init__(self, monkeypatch):
        self._real = atomic_write.write
        self._held: dict[str, threading.Event] = {}
        self._began: dict[str, threading.Event] = {}
        self.failing: set[str] = set()
        self.threads: dict[str, str] = {}
        self.contents: dict[str, object] = {}
        monkeypatch.setattr(atomic_write, "write", self)

    def hold(self, *names):
        for name in names:
            self._held[name] = threading.Event()
            self._began[name] = threading.Event()

    def open(self, *names):
        for name in names or self._held:
            self._held[name].set()

    def wait_until_begun(self, name):
        assert self._began[name].wait(LONGEST)

    def __call__(self, content, path, also=(), record=None):
        self.threads[path.name] = threading.current_thread().name
        self.contents[path.name] = content
        if path.name in self._held and threading.current_thread() is not threading.main_thread():
            self._began[path.name].set()
            assert self._held[path.name].wait(LONGEST)
        also = list(also)
        for one in (path, *also):
            if one.name in self.failing:
                raise SaveError(f"could not save to {str(one)!r}: made to fail.", one)
        self._real(content, path, also, record)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


REAL_START, REAL_WAIT = BackgroundThread.start, BackgroundThread.wait
WRITERS = []  # of this test


@pytest.fixture(autouse=True)
def _record_writers(monkeypatch):
    WRITERS.clear()

    def start(thread, work):
        WRITERS.append(thread)
        REAL_START(thread, work)

    monkeypatch.setattr(BackgroundThread, "start", start)


@pytest.fixture
def opens_when_waited_for(monkeypatch, gate):
    """Opens the gate when training waits for a save; lists the waits."""
    waits = []

    def wait(thread):
        if thread.is_busy:
            waits.append(thread)
            gate.open()
        REAL_WAIT(thread)

    monkeypatch.setattr(BackgroundThread, "wait", wait)
    return waits


def join_writer():
    """Wait for the save in flight, without the save queue."""
    for thread in WRITERS:
        REAL_WAIT(thread)


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
        safe_load.verify(Path(path))
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
    """The files in a folder, without the lock of a run that trains into it."""
    paths = folder.iterdir() if folder.exists() else ()
    return sorted(path.name for path in paths if not path.name.endswith(".fitkit-lock"))


def saver_state(path, name="ModelCheckpoint"):
    return safe_load.read(path)["callback_states"][name]["state"]


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


def without_configs(path):
    """The content of a file, but not whether its savers write in the background."""
    content = safe_load.read(path)
    for entry in content.get("callback_states", {}).values():
        del entry["config"]
    return content


def test_what_is_written_is_the_moment_of_the_request_while_training_races_ahead(tmp_path, gate):
    gate.hold("4.pth")

    def release():
        assert not (tmp_path / "behind" / "4.pth").exists(), "nobody held it back"
        gate.open()
        join_writer()

    behind = rich(tmp_path / "behind", {"s7": release}, background=True)
    assert gate.threads["4.pth"].startswith("fitkit-save")
    at_once = rich(tmp_path / "now", {}, background=False)
    assert gate.threads["8.pth"] == "MainThread"
    expected = ["12.pth", "4.pth", "8.pth", "w12.pth", "w4.pth", "w8.pth"]
    assert names(tmp_path / "behind") == names(tmp_path / "now") == expected
    for name in expected:
        contents = [without_configs(tmp_path / run / name) for run in ("now", "behind")]
        assert list(differences(*contents)) == [], name
    ends = [handler.get_state_dict() for handler in (at_once, behind)]
    assert {path for path, _, _ in differences(*ends)} <= {
        f"['callback_states'][{key!r}]['config']['background']"
        for key in ends[0]["callback_states"]
    }
    # it does change, so that this test could fail
    early, late = (safe_load.read(tmp_path / "behind" / name) for name in ("4.pth", "8.pth"))
    changed = {path.split("]")[0] for path, _, _ in differences(early, late)}
    assert {
        "['model_state_dict'",
        "['optimizer_state_dict'",
        "['ema_state_dict'",
        "['rng'",
    } <= changed
    assert {"['callback_states'", "['scheduler_state_dict'", "['progress'"} <= changed
    assert early["callback_states"]["Counts"]["state"]["nested"]["deep"]["values"] == [0, 1, 2, 3]


def test_a_run_goes_on_from_each_file_as_if_nothing_had_happened(tmp_path):
    uninterrupted = rich(tmp_path / "whole", {}, background=True)
    for name in ("4.pth", "8.pth", "12.pth"):
        resumed = rich(tmp_path / name, {}, True, resume=tmp_path / "whole" / name)
        left = differences(uninterrupted.get_state_dict(), resumed.get_state_dict())
        assert list(left) == []


def test_the_memory_of_the_copies_is_used_again_and_given_back(tmp_path, gate):
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
    safe_load.verify(tmp_path / "hand.pth")


# ---- one save at a time -------------------------------------------------------------------------


def test_the_next_save_waits_for_the_one_in_flight(tmp_path, gate, opens_when_waited_for):
    gate.hold("1.pth")
    saver = every_batch(tmp_path, retention=Retention(keep_last=9))
    seen = []

    def look():
        seen.append((names(tmp_path), [name for name, _ in saver.kept]))

    hears = Hears()
    fit(make(), [saver, hears, At(s1=look, s2=look)])
    assert opens_when_waited_for
    assert seen[0] == ([], ["1.pth"])
    assert "1.pth" in seen[1][0], "training goes on only when the first is durable"
    assert seen[1][1] == ["1.pth", "2.pth"]
    assert [name for name, _ in hears.heard] == ["1.pth", "2.pth", "3.pth", "4.pth"]
    for step in range(1, 5):  # each file knows of itself and of those before it
        state = saver_state(tmp_path / f"{step}.pth")
        assert state["last_path"] == f"{step}.pth"
        assert [name for name, _ in state["kept"]] == [f"{n}.pth" for n in range(1, step + 1)]


def test_an_old_file_is_deleted_only_when_the_new_one_is_durable(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("2.pth")
    seen = []
    saver = every_batch(tmp_path, max_to_keep=1)
    fit(make(), [saver, At(s1=join_writer, s2=lambda: seen.append(names(tmp_path)))])
    assert seen == [["1.pth"]]
    assert names(tmp_path) == ["4.pth"]
    assert saver.kept == [["4.pth", None]]


def test_the_folder_is_the_same_as_without_background(tmp_path):
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

    for background in (False, True):
        folder = tmp_path / str(background)
        fit(make(), [*savers(folder, background), Scores(*scores)], epochs=7)
    assert names(tmp_path / "True") == names(tmp_path / "False")
    for name in names(tmp_path / "True"):
        contents = [without_configs(tmp_path / folder / name) for folder in ("False", "True")]
        assert list(differences(*contents)) == [], name


# ---- being told ---------------------------------------------------------------------------------


def test_each_file_is_announced_once_in_the_main_thread(tmp_path):
    hears = Hears()
    savers = [every_batch(tmp_path), ModelCheckpoint(tmp_path / "last.pth", background=True)]
    fit(make(), [*savers, hears])
    announced = [name for name, _ in hears.heard]
    assert sorted(announced) == names(tmp_path)
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
    """A save is in flight when training ends in whatever way."""
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
    announced = {name for name, _ in hears.heard}
    assert announced == set(names(tmp_path))
    for path in tmp_path.iterdir():
        safe_load.verify(path)
    if end == "sigterm":
        state = safe_load.read(tmp_path / "preempted.pth")
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


def test_an_error_surfaces_at_the_next_save(tmp_path, gate):
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


def test_an_error_surfaces_at_the_end_of_fit(tmp_path, gate, opens_when_waited_for):
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


def test_with_warn_training_goes_on_and_the_saver_is_as_before(tmp_path, gate):
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


def test_a_save_after_one_that_failed_describes_the_files_that_there_are(
    tmp_path, gate, opens_when_waited_for
):
    gate.hold("2.pth")
    gate.failing = {"2.pth"}
    saver = every_batch(tmp_path, on_error="warn", max_to_keep=2)
    with pytest.warns(RuntimeWarning, match=r"2\.pth"):
        fit(make(), [saver, At(s1=join_writer)])
    assert names(tmp_path) == ["3.pth", "4.pth"]
    assert saver.kept == [["3.pth", None], ["4.pth", None]]
    state = saver_state(tmp_path / "3.pth")
    assert state["kept"] == [["1.pth", None], ["3.pth", None]]
    assert state["last_path"] == "3.pth"
    assert safe_load.read(tmp_path / "3.pth")["progress"]["state"]["global_step"] == 3


def states_in(path):
    """The savers' states in a file, by the names of their files."""
    entries = safe_load.read(path)["callback_states"].values()
    return {entry["identity"].split()[0]: entry["state"] for entry in entries}


def test_the_next_file_of_another_saver_does_not_describe_a_save_that_failed(
    tmp_path, gate, opens_when_waited_for
):
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
    with pytest.warns(RuntimeWarning, match=r"a2\.pth"):
        fit(make(), [failing, other])
    assert names(tmp_path) == ["a4.pth", "b3.pth"]
    state = states_in(tmp_path / "b3.pth")["a{global_step}.pth"]
    assert (state["last_path"], state["kept"]) == (None, [])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("weights_only", [False, True])
def test_the_files_of_one_save_do_not_describe_another_of_it_that_failed(
    tmp_path, gate, background, weights_only
):
    gate.failing = {"a1.pth"}
    options = {"background": background, "on_error": "warn", "max_to_keep": 1}
    savers = [
        ModelCheckpoint(
            tmp_path / (name + "{epoch}.pth"),
            save_weights_only=weights_only and name == "a",
            **options,
        )
        for name in ("a", "b", "c")
    ]
    with pytest.warns(RuntimeWarning, match=r"a1\.pth"):
        fit(make(), savers)
    assert names(tmp_path) == ["b1.pth", "c1.pth"]
    states = states_in(tmp_path / "b1.pth")
    for saver, (name, state) in zip(savers, states.items(), strict=True):
        expected = None if name == "a{epoch}.pth" else name.replace("{epoch}", "1")
        assert state["last_path"] == saver.last_path == expected
        assert state["kept"] == saver.kept == ([] if expected is None else [[expected, None]])
        assert list(state["writing"]) == ([] if expected is None else [expected])


def test_a_saver_that_failed_saves_again_at_the_next_event(tmp_path, gate):
    gate.failing = {"a1.pth"}
    savers = [
        ModelCheckpoint(tmp_path / (name + "{epoch}.pth"), background=True, on_error="warn")
        for name in ("a", "b")
    ]
    with pytest.warns(RuntimeWarning, match=r"a1\.pth"):
        fit(make(), savers, epochs=3, steps_per_epoch=1)
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
    safe_load.verify(tmp_path / "preempted.pth")


def test_a_save_that_failed_long_before_the_process_is_ended(tmp_path, gate):
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


def test_nobody_has_asked_for_anything_after_a_failed_fit(tmp_path, gate):
    """What is still asked for would be in the next snapshot, and a resume would answer it."""
    gate.failing = {"a1.pth"}
    savers = [
        ModelCheckpoint(tmp_path / "a{global_step}.pth", save_freq=1, background=True),
        ModelCheckpoint(tmp_path / "b{global_step}.pth", save_freq=2, background=True),
    ]
    with pytest.raises(SaveError):
        fit(make(), [*savers, At(s1=join_writer)])
    assert [saver.requested for saver in savers] == [(), ()]
    assert [saver.in_flight for saver in savers] == [(), ()]


# ---- killed -------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, threading, time, traceback, warnings
from pathlib import Path
import torch
from torch import nn
import fitkit
from fitkit.checkpointing.storage import safe_load
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
                safe_load.verify(path)
    for path, wanted, found in differences(expected, torch.load(folder / "end.pt")):
        raise SystemExit(f"ending {ending} after {kills} kills: {path} differs")
    names = sorted(path.name for path in (folder / "run").iterdir())
    left = [name for name in names if name.endswith(".fitkit-tmp")]
    lasting = {"2.pth", "4.pth", "6.pth"} - set(names)
    if left or lasting or len(names) > 10:
        raise SystemExit(f"ending {ending} after {kills} kills: {names}")
    for path in (folder / "run").iterdir():
        safe_load.verify(path)
print(kills)
"""


@pytest.mark.slow
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
