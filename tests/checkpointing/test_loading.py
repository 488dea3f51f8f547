from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, DamagedCheckpointError, NNHandler, UnsafeCheckpointError
from fitkit.checkpointing import loading
from fitkit.checkpointing.storage import atomic_write


class Net(nn.Module):
    def __init__(self, width=4, act=nn.ReLU, **extra):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), act(), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def make(model=Net, **kwargs):
    handler = NNHandler(model, model_type="regression", **kwargs)
    handler.set_optimizer(torch.optim.Adam, lr=0.01, weight_decay=0.1)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    handler.set_loss_fn(nn.MSELoss())
    return handler


@pytest.fixture
def data():
    return torch.randn(12, 3), torch.randn(12, 1)


def fit(handler, data, epochs=2, **options):
    if "resume" in options or handler.ema is not None:  # what is not updated would be dropped
        options = {"ema_decay": 0.5, **options}
    return handler.fit(data, epochs=epochs, batch_size=4, progress_bar=False, **options)


class Counter(fitkit.Callback):
    state_fields = ("count",)

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, batch, logs):
        self.count += 1


@pytest.fixture
def trained(data):
    handler = make(width=5, seed=3)
    handler.add_callback(Counter())
    fit(handler, data, ema_decay=0.5)
    return handler


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(tmp_path / "a.pth")
    return tmp_path / "a.pth"


def bits(value):
    """A state as something that compares by its bits."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.cpu().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return repr(value)


def change(path: Path, **changes):
    """The same file with some keys changed."""
    state = torch.load(path, weights_only=True)
    state.update(changes)
    atomic_write.write(state, path)
    return path


# ---- whole --------------------------------------------------------------------------------------


def test_a_loaded_handler_is_the_one_that_was_saved(trained, saved):
    loaded = loading.load(saved, "cpu")
    assert isinstance(loaded, NNHandler)
    assert type(loaded.module) is Net
    assert loaded.module.head.in_features == 5
    assert loaded.parts.model_type.value == "regression"
    assert loaded.history.history == trained.history.history
    assert loaded.train_losses == trained.train_losses
    assert loaded.optimizer.param_groups[0]["lr"] == trained.optimizer.param_groups[0]["lr"]
    assert loaded.scheduler.last_epoch == 2
    assert bits(loaded.get_state_dict()) == bits(trained.get_state_dict())


def test_a_saved_file_needs_no_allow_list_and_names_its_keys(saved):
    state = torch.load(saved, weights_only=True)
    for key in [
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "scaler_state_dict",
        "ema_state_dict",
        "callback_states",
        "history",
        "progress",
        "rng",
        "loader",
        "seed",
        "sampler",
        "sde",
        "model_class",
        "model_kwargs",
        "model_code",
        "format_version",
        "fitkit_version",
        "pytorch_version",
    ]:
        assert key in state
    assert state["model_class"].endswith(":Net")
    assert state["model_kwargs"] == {"width": 5}


def test_loading_twice_gives_two_handlers_that_share_nothing(saved, data):
    options = {"skip_callbacks": True}
    one, other = NNHandler.load(saved, **options), NNHandler.load(saved, **options)
    before = bits(other.get_state_dict())
    fit(one, data)
    assert bits(other.get_state_dict()) == before


def test_classes_among_the_arguments(tmp_path):
    make(act=nn.GELU).save(tmp_path / "a.pth")
    assert type(NNHandler.load(tmp_path / "a.pth").module.body[1]) is nn.GELU


def test_from_the_device_of_another_machine(trained, tmp_path):
    """Nothing of where tensors lived is needed to read them."""
    trained.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", device=torch.device("cpu"))
    assert all(parameter.device.type == "cpu" for parameter in loaded.module.parameters())


def test_loading_draws_nothing_from_the_programs_streams(saved, draw):
    torch.manual_seed(0)
    random.seed(0)
    expected = draw()
    torch.manual_seed(0)
    random.seed(0)
    NNHandler.load(saved, model_class=Net(5))
    torch.manual_seed(0)  # Net itself drew
    random.seed(0)
    assert draw()[0] == expected[0]


# ---- leaving out --------------------------------------------------------------------------------


def test_skip_optimizer_leaves_out_the_scheduler_too(saved, trained):
    loaded = NNHandler.load(saved, skip_optimizer=True)
    assert loaded.optimizer is None
    assert loaded.scheduler is None
    loaded.set_optimizer(torch.optim.SGD, lr=1.0)
    assert loaded.history.history == trained.history.history
    assert bits(loaded.module.state_dict()) == bits(trained.module.state_dict())


def test_skip_scheduler(saved, trained):
    loaded = NNHandler.load(saved, skip_scheduler=True)
    assert loaded.scheduler is None
    assert bits(loaded.optimizer.state_dict()["state"]) == bits(
        trained.optimizer.state_dict()["state"]
    )


def test_skip_history(saved):
    loaded = NNHandler.load(saved, skip_history=True)
    assert loaded.history.epoch == []
    assert loaded.train_losses == []
    assert loaded.optimizer is not None


def test_skip_callbacks(saved, data):
    loaded = NNHandler.load(saved, skip_callbacks=True)
    counter = Counter()
    loaded.add_callback(counter)
    assert counter.count == 0
    assert loaded.callbacks.unclaimed == {}
    assert len(loaded.train_losses) == 2


def test_callbacks_that_are_added_later_take_their_state(saved):
    loaded = NNHandler.load(saved)
    counter = Counter()
    loaded.add_callback(counter)
    assert counter.count == 6


def test_skip_ema(saved, trained):
    assert NNHandler.load(saved).ema is not None
    assert NNHandler.load(saved, skip_ema=True).ema is None


def test_skip_sampler_sde(saved):
    assert len(NNHandler.load(saved, skip_sampler_sde=True).train_losses) == 2


# ---- models -------------------------------------------------------------------------------------


def test_a_ready_module_and_a_class_in_the_place_of_the_named_one(saved, trained):
    class Other(Net):
        pass

    module = Net(5)
    by_module = NNHandler.load(saved, model_class=module)
    assert by_module.module is module
    by_class = NNHandler.load(saved, model_class=Other)
    assert type(by_class.module) is Other
    for loaded in (by_module, by_class):
        assert bits(loaded.module.state_dict()) == bits(trained.module.state_dict())
        assert loaded.optimizer.param_groups[0]["params"][0] is next(loaded.module.parameters())


def test_a_handler_of_a_ready_module_needs_one_at_loading(tmp_path):
    make(Net(5)).save(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="model_class="):
        NNHandler.load(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", model_class=Net(5))
    assert type(loaded.module) is Net


def test_a_class_that_is_not_imported_is_not_imported(saved, tmp_path, monkeypatch):
    (tmp_path / "never_seen.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    change(saved, model_class="never_seen:Net")
    with pytest.raises(CheckpointError, match="Import it first, or pass model_class="):
        NNHandler.load(saved)
    assert "never_seen" not in sys.modules
    assert NNHandler.load(saved, model_class=Net).module.head.in_features == 5


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model_class", "os:system"),
        ("model_class", "torch.optim.adam:Adam"),
        ("optimizer_class", "subprocess:Popen"),
        ("optimizer_class", "torch.nn.modules.linear:Linear"),
        ("scheduler_class", "builtins:eval"),
        ("scheduler_class", "torch.optim.adam:Adam"),
    ],
)
def test_the_wrong_kind_of_class_is_refused(saved, key, name):
    change(saved, **{key: name})
    with pytest.raises(CheckpointError, match=name):
        NNHandler.load(saved)


def test_a_loss_of_the_wrong_kind_is_refused(saved):
    loss = {"class": "os:system", "kwargs": {}, "pass_epoch": False, "call_kwargs": {}}
    change(saved, loss=loss)
    with pytest.raises(CheckpointError, match="os:system"):
        NNHandler.load(saved)


def test_arguments_that_could_not_be_stored(tmp_path):
    make(hook=len).save(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"could not be stored.*model_class=<a ready module>"):
        NNHandler.load(tmp_path / "a.pth")
    assert NNHandler.load(tmp_path / "a.pth", model_class=Net()).optimizer is not None


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0])),
        nn.KLDivLoss(log_target=True),
        nn.HuberLoss(delta=0.25),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
        nn.SmoothL1Loss(beta=0.5),
        nn.TripletMarginLoss(margin=2.0),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_of_torch_are_rebuilt(tmp_path, loss):
    handler = make()
    handler.set_loss_fn(loss)
    handler.save(tmp_path / "a.pth")
    rebuilt = NNHandler.load(tmp_path / "a.pth").parts.loss.function
    assert type(rebuilt) is type(loss)
    assert repr(rebuilt) == repr(loss)
    assert bits(rebuilt.state_dict()) == bits(loss.state_dict())
    for name in ("reduction", "label_smoothing", "delta", "beta", "margin"):
        assert getattr(rebuilt, name, None) == getattr(loss, name, None)


def test_another_loss_must_be_set_again(tmp_path, data):
    handler = make()
    handler.set_loss_fn(lambda outputs, targets: (outputs - targets).abs().mean())
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth")
    with pytest.raises(fitkit.ConfigurationError, match="set_loss_fn"):
        fit(loaded, data)


def test_a_scheduler_whose_arguments_cannot_be_stored_goes_on_when_set_again(tmp_path, data):
    def schedule(epoch):
        return 1 / (1 + epoch)

    def with_schedule(handler):
        handler.set_scheduler(torch.optim.lr_scheduler.LambdaLR, lr_lambda=schedule)
        return handler

    whole, part = with_schedule(make(seed=1)), with_schedule(make(seed=1))
    fit(whole, data, 4)
    fit(part, data, 2)
    part.save(tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="call set_scheduler before fit"):
        loaded = NNHandler.load(tmp_path / "a.pth")
    with_schedule(loaded)
    assert loaded.scheduler.last_epoch == 2
    assert loaded.optimizer.param_groups[0]["lr"] == part.optimizer.param_groups[0]["lr"]
    fit(loaded, data, 2)
    assert bits(loaded.module.state_dict()) == bits(whole.module.state_dict())
    assert loaded.history.history == whole.history.history


def test_weights_that_were_shared_stay_shared(tmp_path, data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.other.weight = self.one.weight
            self.last = nn.Linear(3, 1)

        def forward(self, inputs):
            return self.last(self.other(self.one(inputs)))

    handler = make(Tied, seed=1)
    fit(handler, data)
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", model_class=Tied)
    assert loaded.module.one.weight is loaded.module.other.weight
    assert bits(loaded.get_state_dict()) == bits(handler.get_state_dict())


class Extra(Net):
    """Keeps something that is no tensor."""

    def __init__(self):
        super().__init__()
        self.note = {"seen": (1, 2)}

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, state):
        self.note = state


def test_extra_state_of_modules(tmp_path, data):
    import numpy as np

    handler = make(Extra)
    handler.module.note = {"counts": np.arange(3), "seen": {1, 2}}
    handler.save(tmp_path / "a.pth")
    for loaded in (
        NNHandler.load(tmp_path / "a.pth", model_class=Extra),
        NNHandler.initialize_from_checkpoint(tmp_path / "a.pth", Extra),
    ):
        note = loaded.module.note
        assert isinstance(note["counts"], np.ndarray)
        assert note["counts"].tolist() == [0, 1, 2]
        assert note["seen"] == {1, 2}


class Migrating(nn.Linear):
    """Its second version doubles what the first one had."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "weight"] = 2 * state_dict[prefix + "weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_versions_of_modules_survive_a_file_and_a_failed_restore(tmp_path, data):
    handler = make(Migrating, in_features=3, out_features=1)
    before = bits(handler.module.state_dict())
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", model_class=Migrating)
    assert bits(loaded.module.state_dict()) == before
    fit(handler, data, 1, fast_dev_run=True)
    assert bits(handler.module.state_dict()) == before


# ---- what does not fit --------------------------------------------------------------------------


def spoil(state, *path_and_value):
    *path, value = path_and_value
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return state


@pytest.fixture
def other(data):
    """A handler that has a life of its own, into which a checkpoint is to be loaded."""
    handler = make(width=5, seed=8)
    handler.add_callback(Counter())
    fit(handler, data, 1)
    return handler


def unfitting(trained):
    state = trained.get_state_dict()
    wide = make(width=7, seed=3).get_state_dict()
    sgd = make(width=5, seed=3)
    sgd.set_optimizer(torch.optim.SGD, lr=0.1)
    names = {"unknown.weight": torch.ones(1), **state["model_state_dict"]}
    return {
        "shapes": (wide, r"'body.0.weight' has shape \(7, 3\) in the checkpoint and \(5, 3\)"),
        "unknown names": (
            spoil(state, "model_state_dict", names),
            "unknown to the model: 'unknown",
        ),
        "optimizer": (sgd.get_state_dict(), "SGD.*Adam.*set the same optimizer"),
        "groups": (spoil(state, "optimizer_state_dict", "param_groups", []), "parameter groups of"),
        "history": (
            spoil(state, "history", {"epoch": [0]}),
            "callback '[Hh]istory'.*missing 'history'",
        ),
        "callback": (
            spoil(state, "callback_states", "Counter", "state", {"wrong": 1}),
            "callback 'Counter'.*missing 'count'",
        ),
        "average": (
            spoil(state, "ema_state_dict", "weights", {"x": torch.ones(1)}),
            "averaged weights",
        ),
        "progress": (spoil(state, "progress", "state", {}), "progress"),
    }


def counter_of(handler):
    return next(callback for callback in handler.callbacks if isinstance(callback, Counter))


@pytest.mark.parametrize(
    "case",
    [
        "shapes",
        "unknown names",
        "optimizer",
        "groups",
        "history",
        "callback",
        "average",
        "progress",
    ],
)
def test_what_does_not_fit_is_said_and_the_handler_is_as_before(
    trained, other, tmp_path, data, case
):
    state, sentence = unfitting(trained)[case]
    atomic_write.write(state, tmp_path / "bad.pth")
    twin = copy.deepcopy((other.get_state_dict(), counter_of(other).count))
    untouched = make(width=5, seed=8)
    untouched.add_callback(Counter())
    fit(untouched, data, 1)
    with pytest.raises(CheckpointError, match=sentence):
        fit(other, data, resume=tmp_path / "bad.pth")
    assert bits(other.get_state_dict()) == bits(twin[0])
    assert other.callbacks.unclaimed == {}
    # and it trains on as if nobody had tried
    fit(other, data, 2)
    fit(untouched, data, 2)
    assert bits(other.module.state_dict()) == bits(untouched.module.state_dict())
    assert counter_of(other).count == counter_of(untouched).count
    assert other.history.history == untouched.history.history


class Refuses(Counter):
    def load_state_dict(self, state_dict):
        raise ValueError("not today")


def test_a_callback_that_refuses_its_state_leaves_everything_as_it_was(trained, tmp_path, data):
    """Also its own way back must not need what it refuses."""
    state = trained.get_state_dict()
    entry = {"name": "Refuses", "identity": "", "state": {"count": 9}}
    states = {**state["callback_states"], "Refuses": entry}
    atomic_write.write(spoil(state, "callback_states", states), tmp_path / "a.pth")
    handler = make(width=5, seed=8)
    counter, last = Counter(), Counter()
    last.name = "Last"
    for callback in (counter, Refuses(), last):
        handler.add_callback(callback)
    fit(handler, data, 1)
    before = bits(handler.get_state_dict())
    with pytest.raises(CheckpointError, match="not today") as caught:
        fit(handler, data, resume=tmp_path / "a.pth")
    assert any("callback 'Refuses'" in note for note in caught.value.__notes__)
    assert bits(handler.get_state_dict()) == before
    assert counter.count == 3
    assert handler.callbacks.unclaimed == {}
    fit(handler, data, 1)


def test_a_fresh_handler_after_a_failed_resume_is_still_fresh(trained, tmp_path, data):
    atomic_write.write(unfitting(trained)["callback"][0], tmp_path / "bad.pth")
    failed, untouched = make(width=5, seed=8), make(width=5, seed=8)
    for handler in (failed, untouched):
        handler.add_callback(Counter())
    with pytest.raises(CheckpointError):
        fit(failed, data, resume=tmp_path / "bad.pth")
    torch.manual_seed(77)
    fit(failed, data)
    fit(untouched, data)
    assert bits(failed.get_state_dict()) == bits(untouched.get_state_dict())


def test_names_can_be_left_out_but_shapes_cannot(saved):
    class Shorter(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.head = nn.Linear(width, 1)

        def forward(self, inputs):
            return self.head(inputs)

    with pytest.raises(CheckpointError, match=r"unknown to the model: 'body.0.bias'"):
        NNHandler.load(saved, model_class=Shorter)
    loaded = NNHandler.load(
        saved, model_class=Shorter, strict_load=False, skip_optimizer=True, skip_ema=True
    )
    assert torch.equal(
        loaded.module.head.weight, torch.load(saved)["model_state_dict"]["head.weight"]
    )
    with pytest.raises(CheckpointError, match="shape"):
        NNHandler.load(saved, model_class=Shorter(9), strict_load=False, skip_optimizer=True)


# ---- weights only -------------------------------------------------------------------------------


def test_initialize_from_a_whole_checkpoint_takes_the_averaged_weights(saved, trained):
    loaded = loading.initialize_from_checkpoint(saved, Net, model_type="regression", width=5)
    assert bits(dict(loaded.module.state_dict())) == bits(trained.ema.weights())
    assert loaded.optimizer is None
    assert loaded.train_losses == []


def test_initialize_without_an_average(tmp_path, data):
    handler = make()
    fit(handler, data)
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.initialize_from_checkpoint(tmp_path / "a.pth", Net, "regression")
    assert bits(dict(loaded.module.state_dict())) == bits(dict(handler.module.state_dict()))


@pytest.mark.parametrize("wrap", [dict, lambda state: {"model_state_dict": state}, lambda s: s])
def test_initialize_from_a_bare_state_dict(tmp_path, wrap):
    net = Net()
    torch.save(wrap(net.state_dict()), tmp_path / "weights.pt")
    loaded = NNHandler.initialize_from_checkpoint(tmp_path / "weights.pt", Net)
    assert bits(dict(loaded.module.state_dict())) == bits(dict(net.state_dict()))
    ready = Net()
    assert NNHandler.initialize_from_checkpoint(tmp_path / "weights.pt", ready).module is ready


def test_initialize_says_what_does_not_fit(saved):
    with pytest.raises(
        CheckpointError, match=r"\(5, 3\) in the checkpoint and \(6, 3\) in the model"
    ):
        NNHandler.initialize_from_checkpoint(saved, Net, width=6)


@pytest.mark.parametrize("content", [{}, [], 3, {"a": 1}, {1: torch.ones(1)}, torch.ones(2), None])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpointError, match="holds no weights"):
        NNHandler.initialize_from_checkpoint(tmp_path / "a.pth", Net)
    with pytest.raises(DamagedCheckpointError, match="not a checkpoint of fitkit"):
        NNHandler.load(tmp_path / "a.pth")


def test_weights_where_a_whole_checkpoint_is_needed(tmp_path, data):
    torch.save(Net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"weights only.*initialize_from_checkpoint"):
        NNHandler.load(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="weights only"):
        fit(make(), data, resume=tmp_path / "a.pth")


def test_code_in_a_file_is_for_reading(tmp_path):
    handler = make(save_model_code=True)
    handler.save(tmp_path / "a.pth")
    assert "class Net(nn.Module)" in torch.load(tmp_path / "a.pth")["model_code"]
    change(tmp_path / "a.pth", model_code="raise SystemExit('run')")
    assert NNHandler.load(tmp_path / "a.pth").model_code == "raise SystemExit('run')"


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_could_run_code_is_refused(tmp_path, capsys, data):
    torch.save({"model_state_dict": Evil(), "progress": {}}, tmp_path / "a.pth")
    for use in (
        lambda: NNHandler.load(tmp_path / "a.pth"),
        lambda: NNHandler.initialize_from_checkpoint(tmp_path / "a.pth", Net),
        lambda: fit(make(), data, resume=tmp_path / "a.pth"),
    ):
        with pytest.raises(UnsafeCheckpointError):
            use()
    assert "run" not in capsys.readouterr().out


# ---- hostile structures -------------------------------------------------------------------------


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


JUNK = [
    None, True, -1, 10**30, 1.5, float("nan"), "", "../../x", b"x", [], {}, (), set(), [None],
    {"a": 1}, {None: None}, {1: {2: 3}}, {"__fitkit__": "x"}, {"__fitkit__": "class"},
    {"name": 1}, "os:system", torch.ones(2), torch.zeros(0), torch.ones(1).expand(10**6),
    torch.empty(3, device="meta"), {"state": {}}, nested(50), nested(300),
]  # fmt: skip


def paths_of(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths_of(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 2)):
            yield from paths_of(value[number], (*path, number))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_hostile_structures_end_in_our_errors_and_change_nothing(
    trained, other, tmp_path, data, seed
):
    rng = random.Random(seed)
    state = trained.get_state_dict()
    paths = [path for path in paths_of(state) if path]
    before = bits(other.get_state_dict())
    for _ in range(40):
        path = rng.choice(paths)
        spoiled = spoil(state, *path, rng.choice(JUNK))
        torch.save(spoiled, tmp_path / "bad.pth")
        try:
            fit(other, data, 0, resume=tmp_path / "bad.pth")
        except fitkit.FitkitError:
            assert bits(other.get_state_dict()) == before, path
        except Exception as error:  # noqa: BLE001  whatever it is
            pytest.fail(f"{path}: {type(error).__name__}: {error}")
        else:
            other = make(width=5, seed=8)
            other.add_callback(Counter())
            fit(other, data, 1)
            before = bits(other.get_state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_hostile_structures_in_a_file_to_load(trained, tmp_path, seed):
    rng = random.Random(seed)
    state = trained.get_state_dict()
    paths = [path for path in paths_of(state) if path]
    for _ in range(50):
        path = rng.choice(paths)
        torch.save(spoil(state, *path, rng.choice(JUNK)), tmp_path / "bad.pth")
        for use in (
            lambda: NNHandler.load(tmp_path / "bad.pth"),
            lambda: NNHandler.initialize_from_checkpoint(tmp_path / "bad.pth", Net, width=5),
        ):
            try:
                use()
            except fitkit.FitkitError:
                pass
            except Exception as error:  # noqa: BLE001  whatever it is
                pytest.fail(f"{path}: {type(error).__name__}: {error}")
