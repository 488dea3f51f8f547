"""Which entry of a checkpoint belongs to which callback."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fitkit
from fitkit import Callback
from fitkit.core.callback_entries import changes, describe, entry_of, is_same, label, match_entries


class Watch(Callback):
    state_fields = ("count",)

    def __init__(self, monitor="loss", patience=1):
        self.monitor, self.patience, self.count = monitor, patience, 0

    def identity(self):
        return self.monitor


def numbers(callbacks, entries):
    found = {id(pair.callback): pair.number for pair in match_entries(callbacks, entries)}
    return [found.get(id(callback)) for callback in callbacks]


watches = st.builds(Watch, st.sampled_from("ab"), st.integers(1, 3))


@given(st.lists(watches, max_size=5), st.randoms())
def test_unchanged_callbacks_match_whatever_the_order(callbacks, random):
    entries = [describe(callback) for callback in callbacks]
    random.shuffle(callbacks)
    pairs = match_entries(callbacks, entries)
    assert len(pairs) == len(callbacks)
    assert all(is_same(pair.callback, entries[pair.number]) for pair in pairs)
    assert not any(pair.is_by_order for pair in pairs)


@given(st.lists(watches, max_size=4), st.lists(watches, max_size=4))
def test_only_one_meaning_matches_each_entry_once_and_exact_ones_first(callbacks, saved):
    entries = [describe(callback) for callback in saved]
    pairs = match_entries(callbacks, entries)
    assert (
        len({pair.number for pair in pairs}) == len(pairs) == len({id(p.callback) for p in pairs})
    )
    assert all(entries[p.number]["identity"] == p.callback.identity() for p in pairs)
    for meaning in "ab":
        least = min(sum(c.monitor == meaning for c in group) for group in (callbacks, saved))
        assert sum(pair.callback.monitor == meaning for pair in pairs) == least
    exact = [pair for pair in pairs if is_same(pair.callback, entries[pair.number])]
    free = [e for n, e in enumerate(entries) if n not in {pair.number for pair in exact}]
    left = [c for c in callbacks if all(c is not pair.callback for pair in exact)]
    assert not any(is_same(callback, entry) for callback in left for entry in free)


@pytest.mark.parametrize(
    ("patiences", "is_by_order"), [([9], [False]), ([1, 9], [False] * 2), ([8, 9], [True] * 2)]
)
def test_what_only_the_order_decides_is_marked(patiences, is_by_order):
    callbacks = [Watch("a", patience) for patience in patiences]
    entries = [describe(Watch("a", number + 1)) for number in range(len(patiences))]
    assert [pair.is_by_order for pair in match_entries(callbacks, entries)] == is_by_order


def test_one_entry_for_two_callbacks_is_by_order():
    (pair,) = match_entries([Watch("a", 8), Watch("a", 9)], [describe(Watch("a", 1))])
    assert (pair.callback.patience, pair.is_by_order) == (8, True)


OLD = [
    (fitkit.EarlyStopping("val_loss"), "val_loss min 0.0 3 None 0 None None False True", True),
    (fitkit.EarlyStopping("a b", mode="max"), "a b max 0.0 3 None 0 None None False True", True),
    (fitkit.EarlyStopping("a", mode="max"), "a min 0.0 3 None 0 None None False True", False),
    (fitkit.EarlyStopping("val_loss"), "val_accuracy max 0.0 3 None 0 None None False", False),
    (fitkit.ReduceLROnPlateau("loss", cooldown=3), "loss min 0.0001 0.1 10 0 0.0", True),
    (fitkit.ModelCheckpoint("x/last.pth", save_freq=3), "last.pth None epoch", True),
    (fitkit.ModelCheckpoint("best.pth", "val_loss", True), "best.pth val_loss epoch", True),
    (fitkit.ModelCheckpoint("best.pth", "val_loss", True), "best.pth nll epoch", False),
    (fitkit.ModelCheckpoint("best.pth", "val_loss", True), "other.pth val_loss epoch", False),
    (fitkit.AutoSaver(1, save_model_name="m{epoch}"), "m{epoch}", True),
    (fitkit.Timer(60), "3600.0", True),
    (fitkit.CSVLogger("a/log.csv"), "log.csv", True),
]


@pytest.mark.parametrize(("callback", "identity", "fits"), OLD)
def test_identities_of_earlier_files(callback, identity, fits):
    entry = {"name": callback.name, "identity": identity, "state": {}}
    assert numbers([callback], [entry]) == ([0] if fits else [None])


def test_entries_of_earlier_files_come_after_exact_ones():
    callbacks = [Watch("a"), Watch("a b")]
    entries = [{"name": "Watch", "identity": name} for name in ("a b", "a")]
    assert numbers(callbacks, entries) == [1, 0]


def test_changes_know_only_what_both_sides_know():
    callback = Watch("a", math.nan)
    entry = {"config": {"monitor": "b", "patience": math.nan, "removed": 1}}
    assert changes(callback, entry) == {"monitor": ("b", "a")}
    assert changes(callback, {}) == {}


def test_a_changing_argument_is_no_configuration():
    class Best(Callback):
        state_fields = ("best",)

        def __init__(self, best=0, factor=2):
            self.best, self.factor = best, factor

    class Own(Best):
        state_fields = ()

        def state_dict(self):
            return {"best": self.best}

    assert Best().config() == {"factor": 2}
    assert entry_of(Own())["state"] == {"best": 0}
    assert "best" not in Own().config() or Own.state_fields


def test_labels():
    assert label(describe(Watch("a"))) == "Watch (a)"
    assert label(describe(Callback())) == "Callback"


@pytest.mark.parametrize(
    ("callback", "identity"),
    [
        (fitkit.ModelCheckpoint("a/{epoch}.pth"), "{epoch}.pth"),
        (fitkit.ModelCheckpoint("a/{epoch}.pth", "loss"), "{epoch}.pth loss min"),
        (fitkit.ModelCheckpoint("a/{epoch}.pth", "loss", name="mine"), "loss min"),
        (fitkit.ModelCheckpoint("a/{epoch}.pth", name="mine"), ""),
        (fitkit.AutoSaver(1, name="mine"), ""),
        (fitkit.CSVLogger("a.csv", name="mine"), ""),
        (fitkit.HTMLReport("a.html", name="mine"), ""),
        (fitkit.EarlyStopping("loss", patience=3, name="mine"), "loss min"),
    ],
)
def test_the_meaning_of_built_in_callbacks(callback, identity):
    assert callback.identity() == identity
    assert callback.name in ("mine", type(callback).__name__)
