"""Pruning keeps what the rules of retention would have kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit import ConfigurationError, Retention
from fitkit.checkpointing.catalog.metadata import Metadata
from fitkit.checkpointing.catalog.pruning import plan_pruning
from fitkit.checkpointing.catalog.scan import CheckpointFile, RunSignature


def entry(epoch, losses, name=None, batch=0):
    """A checkpoint in memory: after ``epoch`` epochs, or within the next."""
    columns = {"loss": losses[:epoch]}
    metadata = Metadata(
        Path(name or f"{epoch}.pth"), 1, 1, "", "", epoch, batch, 4 * epoch + batch,
        "train" if batch else "begin", (1, epoch, int(bool(batch)), batch),
        {"loss": losses[epoch - 1]} if epoch else {}, None,
    )  # fmt: skip
    texts = {name: list(map(repr, values)) for name, values in columns.items()}
    ids = (0, hash((epoch, batch, name)))
    signature = RunSignature("run", epoch, texts)
    return CheckpointFile(
        metadata.path, "checkpoint", 1, 0.0, ids, metadata=metadata, signature=signature
    )


LOSSES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, float("nan")]), min_size=1, max_size=8)
COUNTS = st.one_of(st.none(), st.integers(1, 4))


@settings(max_examples=150)
@given(LOSSES, COUNTS, COUNTS, COUNTS, st.randoms(use_true_random=False))
def test_the_same_stays_as_while_training(losses, last, best, every, random):
    """Whatever the order in which files are found."""
    if (last, best, every) == (None, None, None) or (
        best is not None and all(one != one for one in losses)
    ):
        return
    retention = Retention(last, best, "loss", "min", every)
    kept, lasting = [], []
    for epoch, loss in enumerate(losses, start=1):
        kept.append([epoch, loss])
        gone = retention.obsolete(kept)
        kept = [one for one in kept if one[0] not in gone]
        lasting += [epoch] if retention.is_lasting(epoch) else []
        kept = [one for one in kept if one[0] not in lasting or one[0] == epoch]
    entries = [entry(epoch, losses) for epoch in range(1, len(losses) + 1)]
    random.shuffle(entries)
    plan = plan_pruning(entries, retention)
    stays = {one.metadata.epoch for one in plan.kept}
    assert {len(losses)} <= stays
    assert set(lasting) <= stays
    if every is None:  # a lasting file takes no place among those that a rule counts while training
        assert stays == {epoch for epoch, _ in kept}
    assert stays | {one.metadata.epoch for one in plan.obsolete} == set(range(1, len(losses) + 1))


def test_files_of_one_place_stay_or_go_together():
    losses = [0.3, 0.2, 0.1]
    entries = [entry(n, losses, name) for n in (1, 2, 3) for name in (f"{n}.pth", f"copy{n}.pth")]
    plan = plan_pruning(entries, Retention(keep_last=2))
    assert sorted(one.path.name for one in plan.obsolete) == ["1.pth", "copy1.pth"]


def test_a_value_of_an_epoch_before_does_not_count():
    losses = [0.1, 0.2, 0.3]
    entries = [entry(1, losses), entry(1, losses, "inside.pth", batch=3), entry(3, losses)]
    plan = plan_pruning(entries, Retention(keep_best=2, monitor="loss"))
    assert [one.path.name for one in plan.obsolete] == ["inside.pth"]


def test_rules_that_cannot_be_used():
    with pytest.raises(ConfigurationError, match="name a monitor"):
        plan_pruning([], Retention(keep_best=1))
    with pytest.raises(ConfigurationError, match="Did you mean 'loss'"):
        plan_pruning([entry(1, [0.5])], Retention(keep_best=1, monitor="los", mode="min"))
    assert plan_pruning([], Retention(keep_best=1, monitor="loss")).obsolete == []
