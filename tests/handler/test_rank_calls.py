"""Methods that all ranks call, as one rank sees them; tests/distributed has several."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fitkit import NNHandler
from fitkit.core.errors import ConfigurationError
from fitkit.distributed.alone import alone
from fitkit.distributed.world import World
from fitkit.handler.rank_calls import batches_of, configuring, together, together_or_alone


class Rank(World):
    """Notes the calls."""

    size = 2

    def __init__(self):
        self.calls = []

    @contextmanager
    def call(self, verb, *, meets=True):
        self.calls.append((verb, meets))
        yield


class Handler:
    def __init__(self, *, is_sharded=False):
        self.world, self.parallel = Rank(), SimpleNamespace(is_sharded=is_sharded)

    @together
    def fit(self, value):
        """Train."""
        return value, self.world.size

    @configuring
    def set_loss(self):
        return None

    @together_or_alone
    def evaluate(self, *, fails=False):
        if fails:
            raise ValueError("boom")
        return self.world.size


def test_verbs_are_announced_to_the_other_ranks():
    handler = Handler()
    assert handler.fit(value=3) == (3, 2)
    handler.set_loss()
    assert handler.evaluate() == 2
    assert handler.world.calls == [("fit", True), ("set_loss", False), ("evaluate", True)]
    assert Handler.fit.__doc__ == "Train."


def test_a_function_of_one_rank_evaluates_alone():
    handler = Handler()
    world = handler.world
    with alone():
        assert handler.evaluate() == 1
        with pytest.raises(ValueError, match="boom"):
            handler.evaluate(fails=True)
    assert handler.world is world
    assert world.calls == []


def test_a_sharded_model_cannot_be_evaluated_alone():
    with alone(), pytest.raises(ConfigurationError, match=r"evaluate needs all ranks .*\(FSDP\)"):
        Handler(is_sharded=True).evaluate()


def test_batches_are_announced_when_they_are_asked_for():
    world = Rank()
    batches = batches_of(world, "predict_batches", iter("ab"))
    assert world.calls == []
    assert list(batches) == ["a", "b"]
    assert world.calls == [("predict_batches", False)]


def test_every_verb_that_needs_the_ranks_is_announced():
    plain = {"add_callback", "remove_callback", "train", "summary"}  # train calls fit
    by_session = {"get_state_dict", "save"}  # only in the middle of an epoch
    of_score = {"get_samples", "score", "sample", "log_likelihood"}
    classmethods = {"load", "initialize_from_checkpoint"}
    public = {
        name
        for name, value in vars(NNHandler).items()
        if callable(value) and not name.startswith("_") and not isinstance(value, type)
    }
    announced = {name for name in public if hasattr(vars(NNHandler)[name], "__wrapped__")}
    assert public - announced == (plain | by_session | of_score | classmethods) & public
