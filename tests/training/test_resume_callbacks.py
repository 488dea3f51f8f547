"""Callbacks of a killed and changed script, in real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import collections, enum, json, os, sys, warnings
import numpy as np
import torch
import fitkit

version, kill_epoch = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
warnings.simplefilter("always")


class Mode(enum.Enum):
    WARM = 1
    HOT = 2


Best = collections.namedtuple("Best", "epoch loss")


class Smooth(fitkit.Callback):
    state_fields = ("value", "mode", "best", "groups")

    def __init__(self, factor):
        self.factor, self.value, self.mode = factor, np.float32(0), Mode.WARM
        self.best, self.groups = Best(-1, 9.0), collections.defaultdict(list)

    def on_epoch_end(self, epoch, logs):
        self.value = self.value * self.factor + logs["loss"] * 0.25
        self.groups[epoch % 2].append(self.mode is Mode.WARM)
        if logs["loss"] < self.best.loss:
            self.best = Best(epoch, logs["loss"])
        self.mode = Mode.HOT


class SaveHere(fitkit.Callback):
    def on_epoch_end(self, epoch, logs):
        if version == "hook":
            self.handler.save("run/mine.pth")


class Evaluate(fitkit.Callback):
    order = 70

    def on_epoch_end(self, epoch, logs):
        self.log("twice", 2 * self.handler.evaluate((x, y))["loss"])


class Listens(fitkit.Callback):
    def on_test_begin(self, logs):
        pass


class Die(fitkit.Callback):
    def on_train_batch_begin(self, batch, logs):
        if self.handler.state.epoch == kill_epoch:
            os.kill(os.getpid(), 9)


x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 2)
handler = fitkit.NNHandler(torch.nn.Linear, in_features=4, out_features=2, seed=0)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.MSELoss())
smooth = [Smooth(0.5), Smooth(0.5), Smooth(0.9)]
callbacks = [smooth[0], SaveHere(), smooth[1], smooth[2], Evaluate(), Listens()]
callbacks += [fitkit.CSVLogger("log.csv"), Die()]
if version != "hook":
    callbacks.append(fitkit.ModelCheckpoint("run/{epoch}.pth"))
os.makedirs("run", exist_ok=True)
history = handler.fit((x, y), epochs=4, callbacks=callbacks, resume="run", progress_bar=False)
values = [(repr(s.value), repr(s.best), repr(s.mode), repr(s.groups)) for s in smooth]
print(json.dumps([history.history, values, open("log.csv").read()]))
"""


@pytest.fixture
def start(tmp_path):
    def run(folder, *arguments):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
        command = [sys.executable, str(tmp_path / "script.py"), *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path / folder, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("version", ["hook", "saver"])
def test_types_events_and_logs_survive_a_kill(start, version):
    whole = start("whole", version, -1)
    assert whole.returncode == 0, whole.stderr
    for epoch in (1, 3):
        assert start("killed", version, epoch).returncode == -signal.SIGKILL
    resumed = start("killed", version, -1)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)
    assert len(json.loads(whole.stdout)[0]["loss"]) == 4


MONITORS = """
import json, sys, warnings
import torch
import fitkit

columns = {"accuracy": [0.8, 0.9, 0.91, 0.91, 0.91, 0.91], "nll": [9.0, 8, 7, 6, 5, 4]}


class Scripted(fitkit.Callback):
    def on_epoch_end(self, epoch, logs):
        for name, values in columns.items():
            self.log(name, values[epoch])


callbacks = eval(sys.argv[2], {"stop": fitkit.EarlyStopping, "save": fitkit.ModelCheckpoint})
handler = fitkit.NNHandler(torch.nn.Linear, seed=0, in_features=2, out_features=1)
handler.set_optimizer(torch.optim.SGD, lr=0.1)
handler.set_loss_fn(torch.nn.MSELoss())
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    handler.fit(
        (torch.ones(4, 2), torch.ones(4, 1)), epochs=int(sys.argv[1]), resume="run",
        callbacks=[Scripted(), *callbacks, fitkit.ModelCheckpoint("run/{epoch}.pth")],
        progress_bar=False,
    )
print(json.dumps({
    "best": [c.best for c in callbacks], "wait": [getattr(c, "wait", 0) for c in callbacks],
    "epoch": handler.state.epoch, "changes": handler.callbacks.config_changes(),
    "told": [str(w.message) for w in told if "callbacks" in str(w.message)],
}))
"""

CHANGES = [
    # before, after, best, what is told, lines of differences
    (
        "[stop('accuracy', patience=2)]",
        "[stop('nll', patience=2)]",
        [4.0],
        ["'EarlyStopping (nll min)' instead of 'EarlyStopping (accuracy max)'"],
        ["EarlyStopping (accuracy max): removed", "EarlyStopping (nll min): added"],
    ),
    (
        "[stop('accuracy', patience=3), stop('nll', patience=3)]",
        "[stop('nll', patience=9), stop('accuracy', patience=9)]",
        [4.0, 0.91],
        [],
        [
            "EarlyStopping (nll min) patience: 3 -> 9",
            "EarlyStopping (accuracy max) patience: 3 -> 9",
        ],
    ),
    (
        "[stop('accuracy', patience=3), stop('nll', patience=3)]",
        "[stop('nll', patience=9)]",
        [4.0],
        ["not attached: 'EarlyStopping'"],
        ["EarlyStopping patience: 3 -> 9", "EarlyStopping (accuracy max): removed"],
    ),
    (
        "[save('best/a.pth', 'nll', True), save('best/b.pth', 'accuracy', True)]",
        "[save('best/b.pth', 'accuracy', True), save('best/a.pth', 'nll', True)]",
        [0.91, 4.0],
        [],
        [],
    ),
    (
        "[save('best.pth', 'accuracy', True)]",
        "[save('best.pth', 'nll', True)]",
        [4.0],
        ["'ModelCheckpoint (best.pth nll min)' instead of"],
        [
            "ModelCheckpoint (best.pth accuracy max): removed",
            "ModelCheckpoint (best.pth nll min): added",
        ],
    ),
    (
        "[save('a.pth', 'nll', True, name='mine')]",
        "[save('b.pth', 'nll', True, name='mine')]",
        [4.0],
        [],
        ["mine filepath: 'a.pth' -> 'b.pth'"],
    ),
]


@pytest.mark.slow  # test_changed_scripts.py has one of these in each run of the tests
@pytest.mark.parametrize(("before", "after", "best", "told", "changes"), CHANGES)
def test_progress_goes_to_the_callback_whose_meaning_it_has(
    tmp_path, before, after, best, told, changes
):
    (tmp_path / "script.py").write_text(MONITORS)

    def start(epochs, callbacks):
        command = [sys.executable, "script.py", str(epochs), callbacks]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    assert start(2, before)["changes"] == []
    found = start(6, after)
    assert (found["best"], found["epoch"]) == (best, 6)
    assert sorted(found["changes"]) == sorted(changes)
    assert len(found["told"]) == len(told)
    for expected, received in zip(told, found["told"], strict=True):
        assert expected in received
