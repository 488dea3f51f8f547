"""A handler with an SDE or a sampler: training, sampling, saving, resuming."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, ConfigurationError, FitkitError, NNHandler, SamplingError
from fitkit.checkpointing.saving import save_multi_files
from fitkit.generative import SDE, VESDE, VPSDE, Sampler, SubVPSDE
from fitkit.testing import assert_resumes_exactly, differences

DATA = 0.3 * torch.randn(24, 2, generator=torch.Generator().manual_seed(0)) + 1.0


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.drop = nn.Dropout(0.2)

    def forward(self, t, x, shift=None):
        out = self.last(self.drop(torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))))
        return out if shift is None else out + shift


class Exact(nn.Module):
    """The score of ``N(1, 0.25)``, times the standard deviation, without anything to learn."""

    def __init__(self, sde, scaled=True):
        super().__init__()
        self.sde, self.scaled = sde, scaled
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, t, x):
        scale, std = self.sde.mean_scale(t)[:, None], self.sde.std(t)[:, None]
        score = -(x - scale) / (0.25 * scale**2 + std**2) + self.offset
        return score * std if self.scaled else score


def make(cls=VPSDE, seed=0, **options):
    handler = NNHandler(Net, "cpu", model_type="score_based", seed=seed)
    handler.set_sde(cls, **options)
    handler.set_optimizer(torch.optim.AdamW, lr=0.01)
    return handler


def fit(handler, **options):
    return handler.fit(DATA, progress_bar=False, **{"batch_size": 8, **options})


def draw(handler, **options):
    return handler.sample((5, 2), **{"steps": 3, **options})


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [VPSDE, VESDE, SubVPSDE])
def test_an_sde_is_all_the_loss_it_takes(cls):
    handler = make(cls)
    history = fit(handler, epochs=40, validation_data=DATA)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    assert history.history["val_loss"][-1] < 1.0


def test_a_loss_of_one_s_own_goes_first():
    handler = make()
    handler.set_loss_fn(lambda model, x: model(torch.ones(len(x)), x).square().mean())
    value = handler.evaluate(DATA)["loss"]
    assert handler.evaluate(DATA)["loss"] == value  # nothing is drawn
    before = draw(handler, seed=1)
    fit(handler, epochs=2)
    assert not torch.equal(draw(handler, seed=1), before)


def test_conditions_in_batches_reach_the_model():
    handler = make()
    handler.fit((DATA, torch.ones(24, 1)), epochs=1, progress_bar=False)
    shifted = handler.score(0.5, DATA, torch.ones(1, 1)) - handler.score(0.5, DATA)
    expected = 1 / handler.sde.std(torch.tensor(0.5))
    torch.testing.assert_close(shifted, expected.expand(24, 2))


class Draws(fitkit.Callback):
    """Draws samples at the end of each epoch."""

    state_fields = ("drawn",)

    def __init__(self):
        self.drawn = []

    def on_epoch_end(self, epoch, logs):
        self.drawn = [*self.drawn, draw(self.handler)]


def test_a_fit_resumes_exactly_at_every_batch():
    def make_handler():
        handler = make(SubVPSDE, likelihood_weighting=True)
        handler.set_train_loader((DATA, torch.ones(24, 1)), batch_size=8)
        handler.set_val_loader(DATA, batch_size=16)
        handler.set_sampler(Counted, start=3)
        return handler

    tried = assert_resumes_exactly(
        make_handler, make_callbacks=lambda: [Draws()], epochs=2, ema_decay=0.9
    )
    assert len(tried) == 18


def test_drawing_does_not_change_training():
    losses = [
        fit(make(), epochs=2, callbacks=callbacks).history["loss"] for callbacks in ([], [Draws()])
    ]
    assert losses[0] == losses[1]


def test_in_double_precision():
    handler = NNHandler(Net().double(), model_type="score_based", seed=0)
    handler.set_sde(VPSDE)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.fit(DATA.double(), progress_bar=False)
    assert draw(handler).dtype == torch.float64
    assert handler.log_likelihood(DATA.double(), tolerance=0.1).dtype == torch.float64
    assert handler.score(0.5, DATA.double()).dtype == torch.float64


# ---- drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("method", ["euler_maruyama", "predictor_corrector", "ode"])
def test_samples_of_a_known_law(method, scaled):
    sde = VPSDE(smallest_time=1e-4)
    handler = NNHandler(Exact(sde, scaled), model_type="score_based", seed=0)
    handler.set_sde(VPSDE, smallest_time=1e-4, divide_by_std=scaled)
    options = {"tolerance": 1e-4} if method == "ode" else {"steps": 60}
    drawn = handler.sample((8000, 2), method=method, **options)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.03)
    point = torch.full((1, 2), 1.5)
    exact = torch.distributions.Normal(1.0, 0.5).log_prob(point).sum().item()
    found = handler.log_likelihood(point, num_probes=None).item()
    assert found == pytest.approx(exact, abs=0.03)
    score = handler.score(1e-4, point)
    torch.testing.assert_close(score, torch.full((1, 2), -2.0), atol=0.01, rtol=0)


def test_a_seed_decides_and_draws_differ():
    handler, other = make(), make()
    first, second = draw(handler), draw(handler)
    assert not torch.equal(first, second)
    assert torch.equal(draw(other), first)
    assert torch.equal(draw(other), second)
    assert torch.equal(draw(handler, seed=4), draw(handler, seed=4))
    twins = [torch.Generator().manual_seed(2) for _ in range(2)]
    assert torch.equal(*(draw(handler, generator=one) for one in twins))
    assert torch.equal(draw(handler), draw(other)), "explicit seeds are not counted"
    with pytest.raises(ConfigurationError, match="seed and generator were both given"):
        draw(handler, seed=1, generator=twins[0])


def test_without_a_seed_torch_decides():
    torch.manual_seed(7)
    first = draw(make(seed=None))
    torch.manual_seed(7)
    assert torch.equal(draw(make(seed=None)), first)


def test_the_program_s_streams_and_the_model_s_mode_are_left():
    handler = make()
    handler.module.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    drawn = draw(handler)
    handler.log_likelihood(DATA, tolerance=0.1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert handler.module.training
    assert not drawn.is_inference()
    assert not drawn.requires_grad
    assert all(p.grad is None for p in handler.module.parameters())


def test_averaged_weights_draw():
    handler = make()
    fit(handler, epochs=2, ema_decay=0.99)
    with handler.ema.swapped_into(handler.module):
        own = {name: value.clone() for name, value in handler.module.state_dict().items()}
    plain = make()
    plain.module.load_state_dict(own)
    assert torch.equal(draw(handler, seed=0), draw(plain, seed=0))
    assert torch.equal(handler.score(0.5, DATA), plain.score(0.5, DATA))
    found = [h.log_likelihood(DATA, seed=0, tolerance=0.1) for h in (handler, plain)]
    assert torch.equal(*found)


def test_values_that_are_no_numbers_stop_it_and_all_is_as_before():
    handler = make()
    fit(handler, ema_decay=0.9)
    with torch.no_grad():
        handler.ema.weights()["last.bias"].fill_(float("nan"))
    before = {name: value.clone() for name, value in handler.module.state_dict().items()}
    state, handler.module.training = torch.get_rng_state(), True
    for verb in (draw, lambda h: draw(h, method="ode"), lambda h: h.log_likelihood(DATA)):
        with pytest.raises(SamplingError):
            verb(handler)
    assert not list(differences(before, dict(handler.module.state_dict())))
    assert handler.module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_guidance_and_conditions():
    handler = make()
    shift = torch.ones(1, 1)
    base = draw(handler, seed=1)
    plain = draw(handler, seed=1, conditions=shift)
    assert not torch.equal(base, plain)
    assert torch.equal(draw(handler, seed=1, conditions=shift, guidance=0.0), base)
    none = {"unconditional": torch.zeros(1, 1), "guidance": 1.0}
    assert torch.equal(draw(handler, seed=1, conditions=[shift], **none), plain)
    stressed = draw(handler, seed=1, conditions=shift, guidance=3.0)
    by_hand = draw(handler, seed=1, conditions=3 * shift)  # the net is linear in its shift
    torch.testing.assert_close(stressed, by_hand, rtol=1e-3, atol=1e-3)


def test_lower_precision():
    handler = make()
    drawn = draw(handler, seed=1, precision="bf16")
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, draw(handler, seed=1), rtol=0.1, atol=0.1)


# ---- errors -------------------------------------------------------------------------------------


def test_what_is_missing_is_named():
    handler = NNHandler(Net, model_type="score_based")
    for verb in (draw, lambda h: h.score(0.5, DATA), lambda h: h.log_likelihood(DATA)):
        with pytest.raises(ConfigurationError, match=r"no SDE is set: call set_sde\(...\) before"):
            verb(handler)
    with pytest.raises(ConfigurationError, match="no loss function is set"):
        fit(handler)
    with pytest.raises(ConfigurationError, match="no sampler is set"):
        handler.get_samples(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.set_sde(VPSDE()), "set_sde expects an SDE class"),
        (lambda h: h.set_sde(nn.Linear), "set_sde expects an SDE class"),
        (lambda h: h.set_sde(VPSDE, beta=1), "It takes"),
        (lambda h: h.set_sampler(3), "a sampler needs the methods"),
        (lambda h: h.set_sampler(Counted(1), start=2), "received a ready sampler"),
        (lambda h: h.get_samples(0), "n must be a whole number"),
        (lambda h: draw(h, steps=0), "steps must be a whole number"),
        (lambda h: draw(h, guidance="much"), "guidance must be a finite number"),
        (lambda h: h.sample((3,)), "the shape of samples"),
        (lambda h: h.log_likelihood(DATA, num_probes=0), "num_probes"),
        (lambda h: draw(h, seed=-1), "seed must be"),
    ],
)
def test_arguments_that_cannot_be_used(call, message):
    handler = make()
    handler.set_sampler(Counted, start=0)
    with pytest.raises(ConfigurationError, match=message):
        call(handler)


def test_only_score_based_models_have_an_sde():
    with pytest.raises(ConfigurationError, match="model_type='score_based'"):
        NNHandler(Net).set_sde(VPSDE)


def test_without_scipy_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.integrate", None)
    with pytest.raises(ConfigurationError, match="pip install scipy"):
        draw(make(), method="ode")


# ---- samplers -----------------------------------------------------------------------------------


class Counted:
    """Draws from every global stream, and counts."""

    def __init__(self, start):
        self.count = start

    def sample(self, n, device, *, model=None):
        self.count += n
        noise = torch.randn(n, device=device) + random.random() + np.random.rand()
        return {"x": noise, "count": self.count, "training": model is not None and model.training}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_a_sampler_of_one_s_own(tmp_path):
    assert issubclass(Counted, Sampler)
    handler = NNHandler(nn.Linear(1, 1), seed=0)
    handler.set_sampler(Counted, start=5)
    state = torch.get_rng_state()
    first = handler.get_samples(3, "cpu", model=handler.module)
    assert (first["count"], first["training"], first["x"].shape) == (8, False, (3,))
    assert torch.equal(torch.get_rng_state(), state)
    again = NNHandler(nn.Linear(1, 1), seed=0)
    again.set_sampler(Counted(5))
    assert torch.equal(again.get_samples(3)["x"], first["x"])


# ---- checkpoints --------------------------------------------------------------------------------


class Tempered(VPSDE):
    """An SDE with a state."""

    def __init__(self, beta_max=20.0):
        super().__init__(beta_max=beta_max)
        self.power = 1.0

    def diffusion(self, t):
        return super().diffusion(t) * self.power

    def state_dict(self):
        return {"power": self.power}

    def load_state_dict(self, state_dict):
        self.power = state_dict["power"]


@pytest.mark.parametrize("seed", [0, None])
def test_a_loaded_handler_draws_what_the_saved_one_would_have(tmp_path, seed):
    handler = make(Tempered, seed, beta_max=9.0, divide_by_std=False)
    handler.set_sampler(Counted, start=2)
    handler.sde.power = 0.5
    fit(handler, ema_decay=0.9)
    draw(handler)
    handler.get_samples(4)
    handler.save(tmp_path / "m.pth")
    loaded = NNHandler.load(tmp_path / "m.pth")
    assert (loaded.sde.beta_max, loaded.sde.power) == (9.0, 0.5)
    assert loaded.sampler.count == 6
    for _ in range(2):
        for options in ({}, {"method": "predictor_corrector"}):
            assert torch.equal(draw(handler, **options), draw(loaded, **options))
        assert torch.equal(handler.get_samples(4)["x"], loaded.get_samples(4)["x"])
    found = [h.log_likelihood(DATA, tolerance=0.1) for h in (handler, loaded)]
    assert torch.equal(*found)
    if seed is not None:  # else the program's own streams have moved on
        losses = [fit(h, ema_decay=0.9).history["loss"] for h in (loaded, handler)]
        assert losses[0] == losses[1]


def test_what_is_in_the_file(tmp_path):
    handler = make(VESDE, sigma_max=9.0)
    draw(handler)
    state = handler.get_state_dict()
    handler.save(tmp_path / "m.pth")
    assert torch.load(tmp_path / "m.pth", weights_only=True)["sde"] == state["sde"]
    assert state["sde"] == {
        "class": "fitkit.generative.sde:VESDE",
        "kwargs": {"sigma_max": 9.0},
        "state": {},
        "divide_by_std": True,
        "likelihood_weighting": False,
    }
    assert state["sampler"] == {"class": None, "kwargs": None, "state": {}, "draws": 1}
    plain = NNHandler(nn.Linear(1, 1)).get_state_dict()
    assert (plain["sde"], plain["sampler"]) == (None, None)


def test_several_files_tell_of_the_seed_and_the_sde(tmp_path):
    handler = make(VESDE, seed=3, sigma_max=9.0)
    state = handler.get_state_dict()
    save_multi_files(handler, state, tmp_path / "m.pth", ["model_kwargs"])
    assert torch.load(tmp_path / "m_model_kwargs.pth", weights_only=True) == {
        "seed": 3,
        "sde_class": "fitkit.generative.sde:VESDE",
        "sde_kwargs": {"sigma_max": 9.0},
    }
    assert state["model_kwargs"] == {}
    assert not handler.parts.model_spec.kwargs


def test_parts_may_be_left_out(tmp_path):
    handler = make()
    handler.set_sampler(Counted, start=1)
    handler.save(tmp_path / "m.pth")
    loaded = NNHandler.load(tmp_path / "m.pth", skip_sampler_sde=True)
    assert (loaded.sde, loaded.sampler) == (None, None)
    assert loaded.get_state_dict()["sde"] is None


def test_a_ready_sampler_is_given_its_state_when_it_is_set_again(tmp_path):
    handler = NNHandler(nn.Linear, in_features=1, out_features=1, seed=0)
    handler.set_sampler(Counted(5))
    handler.get_samples(2)
    handler.save(tmp_path / "m.pth")
    with pytest.warns(UserWarning, match="call set_sampler after loading"):
        loaded = NNHandler.load(tmp_path / "m.pth")
    loaded.save(tmp_path / "again.pth")  # nothing is lost meanwhile
    assert not list(
        differences(*(torch.load(tmp_path / f"{n}.pth")["sampler"] for n in ("m", "again")))
    )
    loaded.set_sampler(Counted(0))
    assert loaded.sampler.count == 7


def test_another_sde_than_the_saved_one_is_refused(tmp_path):
    handler = make()
    fit(handler)
    handler.save(tmp_path / "m.pth")
    other = make(VESDE)
    before = draw(other)
    with pytest.raises(CheckpointError, match=r"holds the sde 'fitkit.*VPSDE', this handler has"):
        fit(other, resume=tmp_path / "m.pth")
    again = make(VESDE)
    assert torch.equal(draw(again), before)
    assert torch.equal(draw(again), draw(other)), "the refused file left no trace"


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("sde", "builtins:dict", "where a SDE is needed, which it is not"),
        ("sde", "gone:Sde", "module 'gone' is not imported"),
        ("sampler", "subprocess:Popen", "where a Sampler is needed, which it is not"),
        ("sampler", "torch.optim.sgd:SGD", "where a Sampler is needed"),
    ],
)
def test_a_class_of_another_kind_is_not_used(tmp_path, part, name, message):
    handler = make()
    handler.set_sampler(Counted, start=1)
    state = handler.get_state_dict()
    state[part] = {**state[part], "class": name, "kwargs": {"args": ["true"]}}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        NNHandler.load(tmp_path / "m.pth")


@pytest.mark.parametrize("part", ["sde", "sampler"])
def test_entries_that_mean_nothing_are_one_kind_of_error(tmp_path, part):
    handler = make(Tempered)
    handler.set_sampler(Counted, start=1)
    state = handler.get_state_dict()
    for entry in ({}, {**state[part], "kwargs": {"nonsense": 1}}, {**state[part], "state": 3}):
        torch.save({**state, part: entry}, tmp_path / "m.pth")
        with pytest.raises(FitkitError):
            NNHandler.load(tmp_path / "m.pth")


def test_an_sde_class_is_abstract_until_it_is_one():
    with pytest.raises(TypeError):
        make(SDE)
