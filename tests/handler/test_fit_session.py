"""The state between two runs: what waits, for whom, and what a save contains meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from fitkit import Callback, ConfigurationError, NNHandler
from fitkit.core.state import FitState, Phase
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World
from fitkit.handler.fit_session import FitSession

CPU = torch.device("cpu")
DATA = (torch.ones(4, 2), torch.zeros(4, 1))


class Two(World):
    """Rank 0 of two."""

    size = 2

    def gather(self, value):
        return [value, {"from": "rank 1"}]


@pytest.fixture
def session():
    return FitSession(World(), Parallel(World()))


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.5)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def run_of(phase, window=None):
    """What ``gathered_from_ranks`` reads of a run."""
    progress = {"window": window or {}, "meters": {}}
    return SimpleNamespace(
        state=SimpleNamespace(phase=phase), rank_progress=lambda: progress, other_ranks=[]
    )


def test_a_new_session_has_only_the_position(session):
    state = FitState()
    assert session.progress(state) == {"state": state.state_dict()}
    assert session.positions() == session.scaler() == {}


def test_loaded_progress_waits_with_a_new_position(session):
    state, saved = FitState(), FitState()
    saved.epoch = 3
    progress = {"state": saved.state_dict(), "unheard": {"event": "e"}, "meters": {"train": 1}}
    session.load_progress(progress, state)
    assert (state.epoch, session.loaded, session.pending_event) == (3, True, {"event": "e"})
    state.epoch = 4
    assert session.progress(state) == {**progress, "state": state.state_dict()}
    session.drop_epoch_progress()
    assert session.progress(state) == {"state": state.state_dict()}


@pytest.mark.parametrize("is_seeded", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_streams_are_the_program_s_unless_some_wait(session, is_seeded, loaded):
    session.loaded = loaded
    own = session.streams(CPU, is_seeded=is_seeded)
    assert (own is None) is (is_seeded or loaded)
    session.pending["rng"] = {"pending": True}
    own = session.streams(CPU, is_seeded=is_seeded)
    assert (own == {"pending": True}) is (is_seeded or loaded)


def test_during_a_fit_values_are_those_of_the_run(handler):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, batch, logs):
            session = self.handler.session
            progress = session.progress(self.handler.state)
            seen.append((progress["state"]["batch"], set(progress), list(session.positions())))
            assert session.streams(CPU, is_seeded=True) is not None
            with pytest.raises(ConfigurationError, match=r"evaluate_all was called during a fit"):
                session.require_idle("evaluate_all")

    handler.fit(DATA, batch_size=2, callbacks=[Look()], progress_bar=False)
    keys = {"state", "unheard", "window", "meters", "others"}
    assert seen == [(1, keys, ["train"]), (2, keys, ["train"])]
    handler.session.require_idle("fit")
    assert set(handler.session.pending) == {"progress", "loader", "scaler_state_dict", "rng"}
    assert handler.session.loaded is False


def test_ending_twice_keeps_what_the_run_left(handler):
    handler.fit(DATA, progress_bar=False)
    pending = dict(handler.session.pending)
    handler.session.end(CPU)
    assert handler.session.pending == pending


def test_a_loaded_checkpoint_counts_until_the_next_fit_ends(handler, tmp_path):
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    assert loaded.session.loaded is True
    loaded.fit(DATA, progress_bar=False)
    assert loaded.session.loaded is False


def test_a_scheduler_s_state_waits_until_it_and_the_optimizer_are_set(handler):
    parts, session = handler.parts, handler.session
    for nothing in (None, {}):
        session.load_scheduler(parts, nothing)
    assert not session.pending
    saved = {**LinearLR(handler.optimizer, 0.5).state_dict(), "last_epoch": 7}
    session.load_scheduler(parts, saved)
    assert session.pending == {"scheduler_state_dict": saved}
    handler.optimizer.param_groups[0]["lr"] = 0.125  # as the loaded optimizer has it
    handler.set_scheduler(LinearLR, start_factor=0.5)
    assert handler.scheduler.last_epoch == 7
    assert not session.pending
    assert handler.optimizer.param_groups[0]["lr"] == 0.125


def test_undo_puts_back_pending_state(session):
    session.pending["rng"] = before = object()
    undo = session.make_undo()
    session.pending.update(rng=None, loader={})
    session.loaded, session.pending_event = True, {}
    undo()
    assert session.pending == {"rng": before}
    assert (session.loaded, session.pending_event) == (False, None)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_other_ranks_are_in_the_progress_only_inside(is_sharded):
    parallel = Parallel(World())
    parallel.is_sharded = is_sharded
    session = FitSession(Two(), parallel)
    session.run = run = run_of(Phase.TRAIN, {"gradients": 1})
    with session.gathered_from_ranks():
        assert run.other_ranks == [{"from": "rank 1"}]
    assert run.other_ranks == []
    with pytest.raises(KeyError), session.gathered_from_ranks():
        raise KeyError
    assert run.other_ranks == []
    assert ("window" in run.rank_progress()) is not is_sharded


@pytest.mark.parametrize(("world", "phase"), [(Two(), Phase.BEGIN), (World(), Phase.TRAIN)])
def test_there_is_nothing_to_gather(world, phase):
    session = FitSession(world, Parallel(world))
    session.run = run = run_of(phase)
    with session.gathered_from_ranks():
        assert run.other_ranks == []


def test_the_timer_of_data_loading_is_shared(session):
    assert session.time_data_loading() is not session.time_data_loading()
    session.run = SimpleNamespace(train=SimpleNamespace(timer=None))
    assert session.time_data_loading() is session.time_data_loading() is session.run.train.timer
