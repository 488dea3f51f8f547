import io
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from fitkit.callbacks import progress_bar
from fitkit.callbacks.progress_bar import ProgressBar
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event
from fitkit.core.logs import Logs
from fitkit.core.state import Phase


class Screen(io.StringIO):
    """Standard error that may be a terminal."""

    def __init__(self, *, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    @property
    def drawings(self):
        """What was drawn on the current line, one after another."""
        return [text.strip() for text in re.split(r"[\r\n]", self.getvalue()) if text.strip()]

    @property
    def lines(self):
        """What a person sees in the end: what stands last on each line."""
        seen = []
        for line in self.getvalue().replace("\x1b[A", "").split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            seen.append(shown.strip())
        return [line for line in seen if line]


def install(monkeypatch, screen):
    # not sys.stderr itself, which pytest puts back between a fixture and its test
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=screen))
    return screen


@pytest.fixture
def terminal(monkeypatch):
    return install(monkeypatch, Screen(is_terminal=True))


@pytest.fixture
def log_file(monkeypatch):
    return install(monkeypatch, Screen(is_terminal=False))


def without_times(lines):
    return [re.sub(r" in [^()]*? s( \(.*?\))?(?=  |$)", "", line) for line in lines]


def test_in_a_log_file_a_line_per_epoch(drive, log_file):
    drive(ProgressBar(0)).fit([0.5, 0.25], last_epoch=2)
    assert without_times(log_file.getvalue().splitlines()) == [
        "Epoch 1/2:  2 batches  loss=1.0000 val_loss=0.5000",
        "Epoch 2/2:  2 batches  loss=1.0000 val_loss=0.2500",
    ]


def test_on_a_terminal_a_bar_and_then_the_same_line(drive, terminal):
    driver = drive(ProgressBar(0), steps=3)
    driver.begin(last_epoch=2)
    for _ in range(2):
        driver.epoch({"loss": 1.0})
    driver.end()
    assert "Epoch 1/2:   0%" in terminal.drawings[0]
    assert re.search(r"Epoch 1/2:  33%.* 1/3 .*loss=0\.5000", terminal.drawings[1])
    assert without_times(terminal.lines) == [
        "Epoch 1/2:  3 batches  loss=1.0000",
        "Epoch 2/2:  3 batches  loss=1.0000",
    ]


def test_validation_has_a_bar_that_goes_away(drive, terminal):
    driver = drive(ProgressBar(0))
    driver.begin(last_epoch=1, validation_steps=4)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.batch(0, {})
    driver.batch(1, {})
    driver.validate(steps=4)
    driver.end_epoch({"val_loss": 0.5})
    driver.end()
    assert any(re.search(r"validation:  50%.* 2/4 ", text) for text in terminal.drawings)
    assert without_times(terminal.lines) == ["Epoch 1/1:  2 batches  val_loss=0.5000"]


def test_what_others_print_at_the_end_of_an_epoch_has_a_line_of_its_own(drive, terminal):
    driver = drive(ProgressBar(0))
    driver.begin(last_epoch=1)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.batch(0, {})
    driver.batch(1, {})
    terminal.write("mine\n")
    driver.end_epoch({"loss": 0.5})
    assert terminal.lines[0] == "mine"


def test_contributed_values_are_shown(drive, log_file):
    driver = drive(ProgressBar())
    driver.begin(last_epoch=1)
    driver.handler.log("mine", 2.0)
    driver.end_epoch({"loss": 1.0})
    assert "loss=1.0000 mine=2.0000" in log_file.getvalue()


def test_it_draws_by_time_and_reads_metrics_only_then(drive, terminal, monkeypatch):
    reads = []
    driver = drive(ProgressBar(refresh_seconds=0.1), steps=1000)
    driver.handler.running_logs = lambda: reads.append(1) or {}
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    driver.begin()
    driver.state.enter(Phase.TRAIN)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    for batch in range(500):
        now[0] += 0.001
        driver.batch(batch, Logs())
    assert 4 <= len(reads) <= 5
    driver.end()


def test_batch_logs_are_not_read(drive, terminal):
    class Unread(Logs):
        def __getitem__(self, name):
            raise AssertionError("reading waits for the device")

    driver = drive(bar := ProgressBar(0))
    driver.begin()
    bar.on_epoch_begin(0, Logs())
    bar.on_train_batch_end(0, Unread({"loss": 1.0}))
    driver.end()


def test_unknown_length(drive, terminal):
    driver = drive(ProgressBar(0), steps=3)
    driver.begin(last_epoch=1, steps=None, validation_steps=None)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    for batch in range(3):
        driver.batch(batch, {})
    driver.validate(steps=2)
    driver.end_epoch({"loss": 1.0})
    assert any("Epoch 1/1: 2 batches" in text for text in terminal.drawings)
    assert any("validation: 1 batches" in text for text in terminal.drawings)
    assert without_times(terminal.lines) == ["Epoch 1/1:  3 batches  loss=1.0000"]


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.VALIDATE, Phase.TEST, Phase.END])
def test_right_after_a_resume(drive, terminal, phase):
    first = drive(steps=4)
    first.begin(last_epoch=3)
    first.epoch({})
    first.state.enter(phase)
    first.state.batch = 3 if phase in (Phase.TRAIN, Phase.TEST) else 0
    second = first.resume(ProgressBar(0), last_epoch=3, validation_steps=5)
    if phase is Phase.TRAIN:
        assert re.search(r"Epoch 2/3:  75%.* 3/4 ", terminal.drawings[0])
        second.batch(3, {})
    if phase is Phase.TEST:
        assert re.search(r"validation:  60%.* 3/5 ", terminal.drawings[-1])
    second.end_epoch({"loss": 1.0})
    second.end()
    assert re.fullmatch(r"Epoch 2/3:  4 batches.*loss=1\.0000", terminal.lines[-1])


def test_a_resume_between_epochs_shows_the_next_one(drive, terminal):
    first = drive()
    first.fit([1.0])
    second = first.resume(ProgressBar(0), last_epoch=3)
    assert terminal.getvalue() == ""
    second.epoch({"loss": 1.0})
    assert "Epoch 2/3:   0%" in terminal.drawings[0]


def test_speed_waiting_and_the_time_left_are_shown(drive, terminal, monkeypatch):
    driver = drive(ProgressBar(0), steps=2)
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    driver.begin(last_epoch=3)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    clock = driver.handler.clock
    now[0], clock.waiting_seconds = 2.0, 0.5
    driver.batch(0, {})
    clock.waiting_seconds, clock.working_seconds = 1.0, 3.0
    driver.batch(1, {})
    now[0] = 5.0
    driver.validate()
    driver.end_epoch({"loss": 0.5})
    assert any("2.000 samples/s, 25% waiting for data, loss=0.5000" in t for t in terminal.drawings)
    assert terminal.lines[-1] == (
        "Epoch 1/3:  2 batches in 5.0 s (2.000 samples/s, 25% waiting for data, 10.0 s left)  "
        "loss=0.5000"
    )
    driver.end()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_loader_that_is_too_slow_is_told_on_a_line_of_its_own(drive, monkeypatch, is_terminal):
    screen = install(monkeypatch, Screen(is_terminal=is_terminal))
    driver = drive(ProgressBar(0), steps=3)
    driver.begin(last_epoch=1, loader={"num_workers": 0, "pin_memory": False})
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    clock = driver.handler.clock
    clock.waiting_seconds, clock.working_seconds, clock.num_batches = 90.0, 10.0, 1000
    seen = []
    message = SimpleNamespace(warn=lambda text, stacklevel: seen.append((text, screen.lines)))
    monkeypatch.setattr(progress_bar, "warnings", message)
    driver.batch(0, {})
    driver.batch(1, {})
    ((text, shown),) = seen
    assert text.startswith("the loader took 90%")
    assert shown == []  # the bar is out of the way
    driver.end_epoch({"loss": 0.5})
    driver.end()


def test_a_notebook_without_widgets_gets_lines_and_no_warning():
    code = (
        "import sys, types; sys.modules['ipykernel.zmqshell'] = types.ModuleType('shell');"
        "import IPython, torch, warnings; sys.modules['ipywidgets'] = None;"
        "warnings.simplefilter('error');"
        "from fitkit.callbacks import progress_bar; print(progress_bar._IN_NOTEBOOK)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (shown.stdout, shown.stderr) == ("False\n", "")


@pytest.mark.parametrize("in_validation", [False, True])
def test_bars_are_closed_however_training_ends(drive, terminal, in_validation):
    driver = drive(bar := ProgressBar(refresh_seconds=1000), steps=4)
    driver.begin(last_epoch=1)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.batch(0, {})
    if in_validation:
        driver.state.enter(Phase.TEST)
        driver.callbacks.fire(Event.TEST_BEGIN, Logs())
    driver.callbacks.fire_to_all(Event.EXCEPTION, KeyboardInterrupt())
    driver.end()
    assert (bar._epoch_bar, bar._pass_bar) == (None, None)
    assert terminal.getvalue().endswith("\n")
    assert re.search(r"Epoch 1/1:  25%.* 1/4 ", terminal.lines[-1])


def test_evaluation_and_prediction_outside_training(drive, terminal):
    driver = drive(ProgressBar(0))
    driver.callbacks.bind(driver.handler, {"steps": 99, "validation_steps": 99}, None)
    driver.validate(steps=2)
    driver.callbacks.fire(Event.PREDICT_BEGIN, Logs())
    driver.callbacks.fire(Event.PREDICT_BATCH_END, 0, Logs())
    driver.callbacks.fire(Event.PREDICT_END, Logs())
    assert "Evaluate: 1 batches" in terminal.drawings[1]
    assert without_times(terminal.lines) == [
        "Evaluate:  2 batches  loss=0.5000",
        "Predict:  1 batch",
    ]


def test_an_evaluation_that_failed_leaves_nothing_to_the_next(drive, terminal):
    driver = drive(ProgressBar(0))
    driver.callbacks.bind(driver.handler, {}, None)
    driver.callbacks.fire(Event.TEST_BEGIN, Logs())
    driver.validate(steps=2)
    assert without_times(terminal.lines) == ["Evaluate:  2 batches  loss=0.5000"]


def test_an_evaluation_inside_an_epoch_that_is_not_its_validation_is_not_shown(drive, terminal):
    driver = drive(ProgressBar(0), steps=4)
    driver.begin(last_epoch=1)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.state.enter(Phase.TRAIN)
    for event, *args in [
        (Event.TEST_BEGIN,),
        (Event.TEST_BATCH_END, 0),
        (Event.TEST_END,),
        (Event.PREDICT_BEGIN,),
        (Event.PREDICT_BATCH_END, 0),
        (Event.PREDICT_END,),
    ]:
        driver.callbacks.fire(event, *args, Logs())
    assert len(terminal.drawings) == 1
    driver.end()


def test_only_the_main_process_shows_anything(drive, terminal):
    driver = drive(ProgressBar(0))
    driver.handler.world.is_main = False
    driver.fit([1.0])
    driver.validate()
    assert terminal.getvalue() == ""


class Widget:
    """Stands for a bar in a notebook."""

    def __init__(self, **arguments):
        self.n, self.total, self.pos = arguments["initial"], arguments["total"], 0
        self.title, self.text, self.is_closed, self.leave = arguments["desc"], "", False, True
        made.append(self)

    def clear(self):
        pass

    def set_postfix_str(self, text, refresh):
        self.text = text

    def update(self, number):
        self.n += number

    def close(self):
        self.is_closed = True


made = []


def test_in_a_notebook_the_widget_stays_with_all_values(drive, log_file, monkeypatch):
    made.clear()
    monkeypatch.setattr(progress_bar, "_IN_NOTEBOOK", True)
    monkeypatch.setattr(progress_bar, "_Bar", Widget)
    driver = drive(ProgressBar(0))
    driver.begin(last_epoch=1)
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.batch(0, {})
    driver.batch(1, {})
    driver.validate()
    driver.end_epoch({"loss": 1.0, "val_loss": 0.5})
    epoch, validation = made
    assert (epoch.n, epoch.text, epoch.leave) == (2, "loss=1.0000 val_loss=0.5000", True)
    assert (validation.leave, validation.is_closed, epoch.is_closed) == (False, True, True)
    assert log_file.getvalue() == ""


def test_no_watching_thread(drive, terminal):
    before = threading.active_count()
    driver = drive(ProgressBar(0))
    driver.begin()
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    assert threading.active_count() == before
    driver.end()


@pytest.mark.parametrize("seconds", [-1, "fast", None])
def test_bad_arguments(seconds):
    with pytest.raises(ConfigurationError, match="received"):
        ProgressBar(seconds)
