"""max_overhead: what saving costs, and that it stays below its share of wall time."""

from __future__ import annotations

import contextlib
import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fitkit
from fitkit import AutoSaver, ConfigurationError, ModelCheckpoint
from fitkit.checkpointing.savers import overhead
from fitkit.checkpointing.savers.overhead import OverheadBudget, SaveStats
from fitkit.checkpointing.storage import atomic_write


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(overhead, "time", clock)
    return clock


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.0, -0.1, 1, 1.0, 2.0, math.nan, math.inf, "0.1", True, []])
def test_a_share_that_means_nothing(share, tmp_path):
    for make in (
        lambda: OverheadBudget(share),
        lambda: ModelCheckpoint("a.pth", max_overhead=share),
        lambda: AutoSaver(1, max_overhead=share),
        lambda: make_handler().auto_save(1, tmp_path, max_overhead=share),
    ):
        with pytest.raises(ConfigurationError, match="max_overhead"):
            make()


@pytest.mark.parametrize(
    "options", [{"save_best_only": True}, {"save_freq": 3}, {"every_n_seconds": 5.0}]
)
def test_a_share_takes_the_place_of_other_triggers(options):
    with pytest.raises(ConfigurationError, match="max_overhead decides by itself"):
        ModelCheckpoint("a.pth", max_overhead=0.1, **options)


# ---- the budget by itself ----------------------------------------------------------------------


class Saves:
    def __init__(self, clock):
        self.stats = SaveStats(clock.now, clock.now, 0)
        self.is_busy = False


@contextlib.contextmanager
def simulated_clock():
    clock, real = Clock(), overhead.time
    overhead.time = clock
    try:
        yield clock
    finally:
        overhead.time = real


def simulate(
    clock, budget, num_batches, *, batch, blocked, slower=0.0, side_group=0, ends_within=False
):
    """A made-up run whose batches take longer by ``slower`` while ``beside`` of them last.

    Args:
        ends_within: a save is over before the end of the last batch beside it.

    Returns:
        the true cost and the elapsed time before each save, and both at the end.
    """
    saves, began, cost, left, found = Saves(clock), clock.now, 0.0, 0, []
    for _ in range(num_batches):
        clock.now += batch
        is_beside, left = left > 0, max(left - 1, 0)
        if is_beside:
            clock.now += slower
            cost += slower
        saves.is_busy = is_beside and not (ends_within and left == 0)
        budget.count_batch(saves.stats, is_busy=saves.is_busy)
        if is_beside and left == 0:  # now the queue hears of it
            saves.is_busy = False
            saves.stats.num_saves += 1
            saves.stats.behind_seconds += side_group * (batch + slower)
        if budget.is_due(saves.stats) and not saves.is_busy and left == 0:
            found.append((cost, clock.now - began))
            clock.now += blocked
            cost += blocked
            saves.stats.blocked_seconds += blocked
            left = side_group
    return found, cost, clock.now - began


def budget_of(share, guess):
    budget = OverheadBudget(share)
    budget.begin(int(guess * OverheadBudget.GUESSED_BYTES_PER_SECOND) + 1)
    return budget


seconds = st.floats(0.001, 2.0)


@settings(max_examples=100)
@given(st.floats(0.005, 0.5), seconds, seconds)
def test_saves_that_block_stay_below_the_share(share, batch, blocked):
    with simulated_clock() as clock:
        budget = budget_of(share, blocked)
        found, cost, elapsed = simulate(clock, budget, 300, batch=batch, blocked=blocked)
    for before, at in found:
        assert before + blocked <= share * at * (1 + 1e-6)
    assert cost <= share * elapsed * (1 + 1e-6)
    # and it spends what it may, where there are batches enough
    if blocked > share * (batch + blocked):
        assert cost >= share * (elapsed - batch - blocked) - blocked - 1e-6


@settings(max_examples=60)
@given(st.floats(0.01, 0.3), seconds, seconds, st.floats(0.01, 0.5), st.integers(1, 4))
def test_what_slows_batches_beside_a_save_counts_as_well(share, batch, blocked, slower, side_group):
    whole = blocked + slower * side_group
    with simulated_clock() as clock:
        found, cost, elapsed = simulate(
            clock, budget_of(share, whole), 400,
            batch=batch, blocked=blocked, slower=slower, side_group=side_group,
        )  # fmt: skip
    for before, at in found:
        assert before + whole <= share * at * (1 + 1e-6)
    assert cost <= share * elapsed * (1 + 1e-6)


def test_what_slows_a_batch_counts_also_if_the_save_is_over_before_the_batch():
    with simulated_clock() as clock:
        found, cost, elapsed = simulate(
            clock, budget_of(0.05, 0.9), 400,
            batch=1.0, blocked=0.001, slower=0.9, side_group=1, ends_within=True,
        )  # fmt: skip
    assert found
    assert cost <= 0.05 * elapsed + 2 * 0.901


def test_before_the_first_save_its_cost_is_guessed_from_the_bytes(clock):
    budget, saves = OverheadBudget(0.1), Saves(clock)
    num_bytes = int(2 * OverheadBudget.GUESSED_BYTES_PER_SECOND)  # two seconds: due after twenty
    budget.begin(num_bytes)
    clock.now += 19.9
    assert not budget.is_due(saves.stats)
    clock.now += 0.2
    assert budget.is_due(saves.stats)


def test_a_new_call_of_fit_counts_anew(clock):
    budget, saves = OverheadBudget(0.1), Saves(clock)
    budget.begin(0)
    clock.now += 1
    saves.stats.blocked_seconds = 50.0
    budget.count_batch(saves.stats, is_busy=saves.is_busy)
    clock.now += 100
    assert not budget.is_due(saves.stats)
    budget.begin(0)
    saves.stats = SaveStats(clock.now, clock.now, 0)
    clock.now += 0.1
    assert budget.is_due(saves.stats)


def test_the_wait_for_a_save_is_not_taken_for_a_slow_batch(clock):
    """Of a batch in which training waited 5 s, 1 s is the batch's own."""
    budget, saves = OverheadBudget(0.5), Saves(clock)
    budget.begin(0)
    for _ in range(3):
        clock.now += 1.0
        budget.count_batch(saves.stats, is_busy=saves.is_busy)
    clock.now += 6.0
    saves.stats.blocked_seconds += 5.0
    saves.is_busy = True
    budget.count_batch(saves.stats, is_busy=saves.is_busy)
    # spent: the wait alone; and one more save of that cost fits when 10 <= 0.5 * elapsed
    clock.now = 100.0 + 19.9
    assert not budget.is_due(saves.stats)
    clock.now = 100.0 + 20.1
    assert budget.is_due(saves.stats)


def test_a_pause_between_batches_is_no_slow_batch(clock):
    """Validation, for one."""
    budget, saves = OverheadBudget(0.5), Saves(clock)
    budget.begin(0)
    for _ in range(3):
        clock.now += 1.0
        budget.count_batch(saves.stats, is_busy=saves.is_busy)
    budget.pause()
    clock.now += 1000.0
    saves.is_busy = True
    budget.count_batch(saves.stats, is_busy=saves.is_busy)
    clock.now += 1.0
    budget.count_batch(saves.stats, is_busy=saves.is_busy)
    budget.begin(0)
    assert budget.is_due(saves.stats)


# ---- the ledger ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stats", "is_requested", "text"),
    [
        ({}, True, "saving 0.0%"),
        ({}, False, "saving 0.0%, 30 batches (60 s) at risk"),
        ({"blocked_seconds": 1.0}, True, "saving 1.0%"),
        ({"blocked_seconds": 1.0, "behind_seconds": 25.0}, True, "saving 1.0% +25.0% behind"),
        (
            {"blocked_seconds": 0.26, "behind_seconds": 5.0},
            False,
            "saving 0.3% +5.0% behind, 30 batches (60 s) at risk",
        ),
    ],
)
def test_what_is_said_at_the_end_of_an_epoch(clock, stats, is_requested, text):
    found = SaveStats(began=100.0, saved_at=140.0, saved_step=20, **stats)
    clock.now = 200.0
    assert found.summary(50, is_requested=is_requested) == text


def test_the_line_of_an_epoch_says_what_saving_cost_and_what_is_at_risk(tmp_path, capsys):
    handler = make_handler()
    saver = ModelCheckpoint(tmp_path / "a.pth", save_freq=5)
    data = (torch.zeros(6, 2), torch.zeros(6, 1))
    handler.fit(data, batch_size=2, epochs=2, callbacks=[saver])
    first, second = capsys.readouterr().err.splitlines()
    assert "saving" not in first, "nothing was saved yet"
    assert "  saving " in second
    assert second.endswith("%, 1 batches (0 s) at risk")


def test_a_call_that_has_only_begun_divides_by_nothing(clock):
    assert SaveStats(100.0, 100.0, 0).summary(0, is_requested=True) == "saving 0.0%"


# ---- in a run -----------------------------------------------------------------------------------

DATA = (torch.zeros(20, 2), torch.zeros(20, 1))


def make_handler():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(lambda outputs, targets: (outputs + 1).square().mean())
    return handler


@pytest.fixture
def made_up(monkeypatch):
    """A run in which a batch takes 1 s and a save 2 s, on a clock of its own."""
    made = SimpleNamespace(now=1000.0, batch=1.0, save=2.0, spent=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    real = atomic_write.write

    def write(content, path, also=(), record=None):
        made.now += made.save
        made.spent += made.save
        real(content, path, also, record)

    monkeypatch.setattr(atomic_write, "write", write)
    return made


class Passes(fitkit.Callback):
    def __init__(self, made):
        self.made = made

    def on_train_batch_begin(self, batch, logs):
        self.made.now += self.made.batch


def fit(handler, callbacks, **options):
    options = {"batch_size": 1, "progress_bar": False, **options}  # 20 batches an epoch
    return handler.fit(DATA, callbacks=callbacks, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_run_stays_below_the_share(tmp_path, made_up):
    began = made_up.now
    handler = make_handler()
    saver = ModelCheckpoint(tmp_path / "{global_step:03d}.pth", max_overhead=0.1)
    fit(handler, [saver, Passes(made_up)], epochs=10)
    elapsed = made_up.now - began
    number = len(names(tmp_path))
    assert "200.pth" in names(tmp_path), "the end is always saved"
    assert made_up.spent == 2.0 * number == handler.saves.stats.blocked_seconds
    assert made_up.spent - 2.0 <= 0.1 * elapsed  # all but the last, which is not asked about
    assert number >= 8, "it saves as often as it may"


def test_an_auto_saver_stays_below_the_share(tmp_path, made_up):
    began = made_up.now
    handler = make_handler()
    handler.auto_save(1, tmp_path, "{epoch:03d}", max_overhead=0.01)
    fit(handler, [Passes(made_up)], epochs=30)
    elapsed = made_up.now - began
    assert "030.pth" in names(tmp_path), "the end is always saved"
    assert made_up.spent - 2.0 <= 0.01 * elapsed + 2.0


def test_one_that_costs_too_much_for_the_whole_run_is_made_at_its_end_only(tmp_path, made_up):
    made_up.save = 1e6
    handler = make_handler()
    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", max_overhead=0.01)
    saver.begin_measuring = lambda: saver._overhead_budget.begin(10**15)
    fit(handler, [saver, Passes(made_up)], epochs=3)
    assert names(tmp_path) == ["60.pth"]


@pytest.mark.parametrize("save_on_last_epoch", [True, False])
def test_the_end_is_saved_also_when_something_stops_the_run(tmp_path, made_up, save_on_last_epoch):
    class Stops(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            if self.handler.state.global_step == 27:
                self.handler.stop_training = True

    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", max_overhead=0.0001)
    fit(
        make_handler(), [saver, Passes(made_up), Stops()], epochs=3,
        save_on_last_epoch=save_on_last_epoch,
    )  # fmt: skip
    assert "27.pth" in names(tmp_path)


def test_in_the_background_no_save_is_asked_for_while_one_is_under_way(tmp_path, monkeypatch):
    """What would only wait, or take the place of another, costs without a use."""
    import threading

    gate, began, real, asked = threading.Event(), threading.Event(), atomic_write.write, []

    def write(content, path, also=(), record=None):
        began.set()
        assert gate.wait(10)
        real(content, path, also, record)

    class Looks(fitkit.Callback):
        order = 61

        def on_train_batch_end(self, batch, logs):
            asked.append(len(self.handler.saves))
            if batch == 10:
                assert began.wait(10)
                gate.set()

    monkeypatch.setattr(atomic_write, "write", write)
    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", max_overhead=0.9, background=True)
    saver.begin_measuring = lambda: saver._overhead_budget.begin(0)
    fit(make_handler(), [saver, Looks()])
    assert asked[:11] == [1, *[0] * 10]
    assert "20.pth" in names(tmp_path)
