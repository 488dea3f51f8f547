"""The state between two runs: what waits, for whom, and what a save contains meanwhile."""

from __future__ import annotations

import gc
import weakref
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
from fitkit.runtime.precision import Precision

CPU = torch.device("cpu")
DATA = (torch.ones(4, 2), torch.zeros(4, 1))


class Two(World):
    """Rank 0 of two."""

    size = 2

    def gather(self, value):
        self.gathered = value
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
        state=SimpleNamespace(phase=phase),
        rank_progress=lambda: progress,
        other_ranks=[],
        forward=SimpleNamespace(precision=Precision(CPU)),
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


def test_the_source_of_the_data_ends_with_its_run(handler):
    """It may hold workers and pinned memory, and the collector ends workers only after seconds."""
    sources = []

    class Watch(Callback):
        def on_train_begin(self, logs):
            sources.append(weakref.ref(self.handler.session.run.train.source))

    gc.disable()
    try:
        handler.fit(DATA, callbacks=[Watch()], progress_bar=False)
        assert sources[0]() is None
    finally:
        gc.enable()


def test_a_loaded_checkpoint_counts_until_the_next_fit_ends(handler, tmp_path):
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    assert loaded.session.loaded is True
    loaded.fit(DATA, progress_bar=False)
    assert loaded.session.loaded is False


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
    session = FitSession(world := Two(), parallel)
    session.run = run = run_of(Phase.TRAIN, {"gradients": 1})
    with session.gathered_from_ranks():
        assert run.other_ranks == [{"from": "rank 1"}]
    assert run.other_ranks == []
    with pytest.raises(KeyError), session.gathered_from_ranks():
        raise KeyError
    assert run.other_ranks == []
    assert ("window" in world.gathered) is not is_sharded
    assert torch.equal(world.gathered["rng"]["torch"], torch.get_rng_state())


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


# ---- setters in hooks ---------------------------------------------------------------------------

SETTERS = {
    "set_optimizer": lambda h: h.set_optimizer(torch.optim.SGD, lr=0.0),
    "set_scheduler": lambda h: h.set_scheduler(LinearLR),
    "set_loss_fn": lambda h: h.set_loss_fn(nn.L1Loss()),
    "set_train_loader": lambda h: h.set_train_loader(DATA),
    "set_val_loader": lambda h: h.set_val_loader(DATA),
    "add_metric": lambda h: h.add_metric("mae", lambda outputs, targets: outputs.mean()),
    "set_predict_step": lambda h: h.set_predict_step(lambda handler, batch: None),
    "set_train_step": lambda h: h.set_train_step(lambda handler, batch: None),
    "set_sde": lambda h: h.set_sde(None),
    "set_sampler": lambda h: h.set_sampler(None),
    "auto_save": lambda h: h.auto_save(1),
}


@pytest.mark.parametrize("hook", ["on_train_begin", "on_train_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("setter", SETTERS)
def test_a_setter_in_a_hook_is_refused_and_changes_nothing(handler, setter, hook):
    calls = []

    class Sets(Callback):
        def __getattribute__(self, name):
            return super().__getattribute__("sets" if name == hook else name)

        def sets(self, *args):
            calls.append(hook)
            SETTERS[setter](self.handler)

    before = dict(vars(handler.parts))
    with pytest.raises(ConfigurationError, match=f"{setter} was called during fit.*between two"):
        handler.fit(DATA, epochs=2, callbacks=[Sets()], progress_bar=False)
    assert calls == [hook]
    after = dict(vars(handler.parts))
    assert all(before[name] is after[name] for name in before)
    handler.fit(DATA, epochs=1, progress_bar=False)


def test_between_two_calls_a_setter_is_accepted(handler):
    handler.fit(DATA, epochs=1, progress_bar=False)
    handler.set_loss_fn(nn.L1Loss())
    handler.fit(DATA, epochs=1, progress_bar=False)
    assert len(set(handler.train_losses)) == 2


def test_a_callback_added_in_a_hook_runs_from_the_next_event_on(handler):
    seen = []

    class Late(Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append((epoch, self.handler is handler, self.params["epochs"]))

    class Adds(Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 0:
                self.handler.add_callback(Late())

    handler.fit(DATA, epochs=3, callbacks=[Adds()], progress_bar=False)
    assert seen == [(1, True, 3), (2, True, 3)]
