"""A training step: accumulation windows, sample weights, clipping, precision, custom steps."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fitkit
from fitkit import Callback, ConfigurationError, DataError, Event, FitkitError, StepOutput, testing
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.handler.torch_compile import CompiledOptimizer, make_capturable_undo


def fit(handler, data, **options):
    return handler.fit(
        data, **{"progress_bar": False, "batch_size": 4, "shuffle": False, **options}
    )


class Gradients(Callback):
    """Records the gradients of each optimizer step before clipping."""

    def __init__(self):
        self.seen = []

    def on_optimizer_step_begin(self, step, logs):
        flat = [p.grad.flatten() for p in self.model.parameters()]
        self.seen.append(torch.cat(flat).clone())


# ---- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 12, 10, 9, 3, 1])
def test_a_window_equals_one_large_batch_also_when_it_is_short(
    make_handler, make_data, weights, size
):
    small, large = make_handler(), make_handler()
    fit(small, make_data(size), epochs=3, batch_size=2, gradient_accumulation_steps=4)
    fit(large, make_data(size), epochs=3, batch_size=8)
    assert small.state.optimizer_steps == large.state.optimizer_steps == 3 * math.ceil(size / 8)
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-12, atol=1e-14)
    assert small.history.history["loss"] == pytest.approx(large.history.history["loss"], rel=1e-9)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    window=st.integers(1, 5),
    has_length=st.booleans(),
)
def test_windows_of_uneven_batches_have_the_gradient_of_their_union(sizes, window, has_length):
    from fitkit import NNHandler

    torch.manual_seed(0)
    data = [(torch.randn(n, 3), torch.randn(n, 1)) for n in sizes]
    handler = NNHandler(nn.Linear(3, 1), "cpu", model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.0)
    handler.set_loss_fn(nn.MSELoss())
    gradients = Gradients()
    batches = data if has_length else iter(data)
    handler.fit(
        batches, progress_bar=False, gradient_accumulation_steps=window, callbacks=[gradients]
    )
    expected = []
    for start in range(0, len(data), window):
        x, y = (torch.cat(parts) for parts in zip(*data[start : start + window], strict=True))
        parameters = list(handler.module.parameters())
        loss = nn.functional.mse_loss(handler.module(x), y)
        expected.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert len(gradients.seen) == len(expected)
    for seen, wanted in zip(gradients.seen, expected, strict=True):
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_do_not_leak_from_before_fit(make_handler, make_data, weights):
    clean, dirty = make_handler(), make_handler()
    for parameter in dirty.module.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    fit(clean, make_data(4))
    fit(dirty, make_data(4))
    assert torch.equal(weights(clean), weights(dirty))


class Half(nn.Module):
    """Its body gets gradients, but is not optimized."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs))


@pytest.mark.parametrize("window", [1, 2])
def test_gradients_of_parameters_outside_the_optimizer_do_not_add_up(window):
    handler = fitkit.NNHandler(Half, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, params=lambda m: m.head.parameters(), lr=0.0)
    handler.set_loss_fn(nn.MSELoss())
    norms = []

    def look(batch, logs):
        norms.append(float(handler.module.body.weight.grad.norm()))

    data = (torch.ones(8, 3), torch.zeros(8, 1))
    watch = LambdaCallback(on_train_batch_end=look)
    options = {"epochs": 3, "callbacks": [watch], "gradient_accumulation_steps": window}
    fit(handler, data, batch_size=4, shuffle=False, **options)
    assert norms[window - 1 :: window] == pytest.approx([norms[window - 1]] * (6 // window))


def test_the_window_may_change_between_epochs(make_handler, make_data, recorder):
    handler = make_handler()

    class Doubles(Callback):
        def on_epoch_begin(self, epoch, logs):
            self.handler.gradient_accumulation_steps = 2**epoch

    fit(handler, make_data(16), epochs=3, callbacks=[Doubles(), recorder])
    assert recorder.count(Event.OPTIMIZER_STEP_END) == 4 + 2 + 1


# ---- clipping -----------------------------------------------------------------------------------


def test_clipping_by_norm_bounds_the_step_and_hooks_see_it_unclipped(
    make_handler, make_data, weights
):
    handler, gradients = make_handler(lr=1.0), Gradients()
    before = weights(handler)
    fit(handler, make_data(4), gradient_clipping_norm=0.01, callbacks=[gradients])
    step = before - weights(handler)
    assert gradients.seen[0].norm() > 1.0
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)
    cosine = nn.functional.cosine_similarity(step, gradients.seen[0], dim=0)
    assert cosine.item() == pytest.approx(1.0)


def test_clipping_by_value_bounds_each_gradient(make_handler, make_data, weights):
    handler, gradients = make_handler(lr=1.0), Gradients()
    before = weights(handler)
    fit(handler, make_data(4), gradient_clipping_value=0.3, callbacks=[gradients])
    step = before - weights(handler)
    torch.testing.assert_close(step, gradients.seen[0].clamp(-0.3, 0.3))


def test_clipping_sees_the_gradient_of_the_whole_window(make_handler, make_data, weights):
    small, large = make_handler(), make_handler()
    fit(
        small,
        make_data(10),
        batch_size=2,
        gradient_accumulation_steps=4,
        gradient_clipping_norm=0.5,
    )
    fit(large, make_data(10), batch_size=8, gradient_clipping_norm=0.5)
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gradient_clipping_norm", "gradient_clipping_value"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_bound_must_be_a_finite_number_above_zero(make_handler, make_data, name, value):
    with pytest.raises(ConfigurationError, match=name):
        fit(make_handler(), make_data(4), **{name: value})


# ---- number formats -----------------------------------------------------------------------------


def float32(make_data, size):
    # small: gradients times the loss scale stay within the range of float16
    return tuple(0.1 * part.float() for part in make_data(size))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"precision": "fp32"}, torch.float32),
        ({"precision": "bf16"}, torch.bfloat16),
        ({"precision": "fp16"}, torch.float16),
        ({"use_amp": True}, torch.float16),
    ],
)
def test_the_precision_is_that_of_training_and_validation(make_handler, make_data, options, dtype):
    seen = []

    class Net(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append((self.training, out.dtype))
            return out

    handler = make_handler(Net(3, 1))
    fit(handler, float32(make_data, 4), validation_data=float32(make_data, 4), **options)
    assert seen == [(True, dtype), (False, dtype)]
    assert all(p.dtype == torch.float32 for p in handler.module.parameters())
    assert handler.history.history["loss"][0] < 10


def test_half_precision_trains_to_about_the_same(make_handler, make_data, weights):
    results = {}
    for precision in ("fp32", "bf16", "fp16"):
        torch.manual_seed(0)
        handler = make_handler(nn.Linear(3, 1))
        fit(handler, float32(make_data, 32), epochs=5, precision=precision)
        results[precision] = weights(handler)
    torch.testing.assert_close(results["fp16"], results["fp32"], rtol=0, atol=5e-3)
    torch.testing.assert_close(results["bf16"], results["fp32"], rtol=0, atol=5e-2)
    assert not torch.equal(results["fp16"], results["fp32"])


def test_fp16_gradients_are_unscaled_before_hooks_and_clipping(make_handler, make_data, weights):
    torch.manual_seed(0)
    handler, gradients = make_handler(nn.Linear(3, 1), lr=1.0), Gradients()
    before = weights(handler)
    fit(
        handler,
        float32(make_data, 4),
        precision="fp16",
        gradient_clipping_norm=0.01,
        callbacks=[gradients],
    )
    assert 0.01 < gradients.seen[0].norm() < 100  # the scale is 65536
    assert (before - weights(handler)).norm().item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("window", [1, 2])
def test_a_step_that_the_scaler_skips_moves_nothing(
    make_handler, make_data, weights, recorder, window
):
    x, y = float32(make_data, 4)
    huge = torch.full_like(x, 1e4)  # the scaled loss overflows
    torch.manual_seed(0)
    handler = make_handler(nn.Linear(3, 1))
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5, interval="step")
    before = weights(handler)
    batches = [(huge, y)] * window
    kwargs = {"batch_size": None, "shuffle": None, "precision": "fp16", "ema_decay": 0.5}
    kwargs["gradient_accumulation_steps"] = window
    fit(handler, batches, callbacks=[recorder], **kwargs)
    assert recorder.count(Event.OPTIMIZER_STEP_BEGIN) == 1
    assert recorder.count(Event.OPTIMIZER_STEP_END) == 0
    assert handler.state.optimizer_steps == 0
    assert handler.state.global_step == window
    assert handler.optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(weights(handler), before)
    assert handler.get_state_dict()["ema_state_dict"]["num_averaged"] == 0
    assert handler.get_state_dict()["scaler_state_dict"]["scale"] == 32768.0

    fit(handler, [(x, y)], **{**kwargs, "gradient_accumulation_steps": 1})  # the scale stays lower
    assert handler.state.optimizer_steps == 1
    assert handler.optimizer.param_groups[0]["lr"] == 0.05
    assert handler.get_state_dict()["ema_state_dict"]["num_averaged"] == 1
    assert handler.get_state_dict()["scaler_state_dict"]["scale"] == 32768.0


def test_a_loss_that_never_becomes_finite_is_named(make_handler, make_data):
    x, y = float32(make_data, 4)
    handler = make_handler(nn.Linear(3, 1))
    with pytest.raises(FitkitError, match="loss scale of fp16 fell to 0"):
        handler.fit([(x * math.inf, y)] * 4, epochs=60, progress_bar=False, precision="fp16")


def test_use_amp_may_not_contradict_precision(make_handler, make_data):
    with pytest.raises(ConfigurationError, match=r"use_amp=True means precision='fp16'.*pass one"):
        fit(make_handler(), make_data(4), precision="bf16", use_amp=True)


# ---- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (nn.MSELoss(reduction="none"), r"a tensor of shape \(4, 1\)"),
        (lambda outputs, targets: None, "a NoneType"),
        (lambda outputs, targets: 0.5, "a float"),
        (lambda outputs, targets: (outputs.sum(), targets), "a tuple"),
        (lambda outputs, targets: outputs.mean().reshape(1), r"a tensor of shape \(1,\)"),
    ],
)
def test_a_loss_must_be_a_scalar_tensor(make_handler, make_data, loss, received):
    handler = make_handler(loss=loss)
    with pytest.raises(DataError, match=f"must be a scalar tensor, received {received}: reduce it"):
        fit(handler, make_data(4))
    with pytest.raises(DataError, match=f"must be a scalar tensor, received {received}"):
        handler.evaluate(make_data(4))


@pytest.mark.parametrize(
    "loss",
    [lambda outputs, targets: outputs.detach().mean(), lambda outputs, targets: torch.tensor(1.0)],
)
@pytest.mark.parametrize("window", [1, 3])
def test_a_loss_without_a_gradient_is_named(make_handler, make_data, loss, window):
    handler = make_handler(loss=loss)
    with pytest.raises(DataError, match="does not depend on any parameter"):
        fit(handler, make_data(4), gradient_accumulation_steps=window)


def test_a_frozen_model_is_named(make_handler, make_data):
    handler = make_handler()
    handler.module.requires_grad_(requires_grad=False)
    with pytest.raises(DataError, match="not all frozen"):
        fit(handler, make_data(4))


def test_the_epoch_is_passed_to_a_loss_that_wants_it(make_handler, make_data):
    seen = []

    def loss(outputs, targets, *, epoch, weight):
        seen.append((epoch, weight))
        return weight * (outputs - targets).square().mean()

    handler = make_handler()
    handler.set_loss_fn(loss, pass_epoch_to_loss=True, weight=0.5)
    fit(handler, make_data(4), epochs=2, validation_data=make_data(4))
    assert seen == [(0, 0.5), (0, 0.5), (1, 0.5), (1, 0.5)]


def test_an_error_in_the_model_names_the_batch(make_handler):
    handler = make_handler()
    with pytest.raises(RuntimeError) as caught:
        fit(handler, (torch.randn(6, 7, dtype=torch.float64), torch.randn(6, 1)))
    assert (
        "raised by the step on a batch of float64 (4, 7), float32 (4, 1)" in caught.value.__notes__
    )


# ---- custom steps -------------------------------------------------------------------------------


def mean_loss(handler, batch):
    inputs, targets = batch
    return (handler.model(inputs) - targets).square().mean()


@pytest.mark.parametrize(
    "form",
    [
        lambda loss: loss,
        lambda loss: StepOutput(loss),
        lambda loss: {"loss": loss},
        lambda loss: {"loss": loss, "logs": {"double": 2 * loss.detach()}},
    ],
    ids=["loss", "StepOutput", "dict", "logs"],
)
def test_a_custom_step_equals_the_plain_one(make_handler, make_data, weights, form):
    plain, custom = make_handler(), make_handler()
    custom.set_train_step(lambda handler, batch: form(mean_loss(handler, batch)))
    kwargs = {"epochs": 2, "gradient_accumulation_steps": 2}
    fit(plain, make_data(10), **kwargs)
    history = fit(custom, make_data(10), **kwargs).history
    assert torch.equal(weights(plain), weights(custom))
    assert plain.history.history["loss"] == history["loss"]
    if "double" in history:
        assert history["double"] == pytest.approx([2 * loss for loss in history["loss"]])


def test_a_custom_step_may_bring_outputs_for_the_metrics(make_handler, make_data):
    plain, custom = make_handler(), make_handler()
    for handler in (plain, custom):
        handler.add_metric("error", lambda outputs, targets: (outputs - targets).abs().mean())

    def step(handler, batch):
        outputs = handler.model(batch[0])
        return StepOutput((outputs - batch[1]).square().mean(), outputs, batch[1])

    custom.set_train_step(step)
    fit(plain, make_data(10), validation_data=make_data(5))
    fit(custom, make_data(10), validation_data=make_data(5))
    assert custom.history.history == plain.history.history


def test_a_metric_that_a_custom_step_does_not_serve_is_left_out(make_handler, make_data):
    from fitkit import MeanAbsoluteError

    handler = make_handler()
    handler.add_metric("function", lambda outputs, targets: (outputs - targets).abs().mean())
    handler.add_metric("object", MeanAbsoluteError())
    handler.set_train_step(mean_loss)
    history = fit(handler, make_data(8), validation_data=make_data(4)).history
    assert set(history) == {"loss", "lr", "val_loss", "val_function", "val_object"}


def test_an_evaluation_step_takes_the_loss_function_s_place(make_handler, make_data):
    handler = make_handler()
    handler.set_train_step(
        mean_loss, evaluation_step=lambda handler, batch: {"loss": torch.tensor(7.0)}
    )
    history = fit(handler, make_data(4), validation_data=make_data(4)).history
    assert history["val_loss"] == [7.0]
    assert history["loss"] != [7.0]


def test_without_a_loss_function_the_training_step_evaluates_too(make_data):
    from fitkit import NNHandler

    modes = []

    def step(handler, batch):
        modes.append((handler.model.training, torch.is_grad_enabled()))
        return mean_loss(handler, batch)

    handler = NNHandler(nn.Linear(3, 1).double(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_train_step(step)
    history = fit(handler, make_data(4), validation_data=make_data(4)).history
    assert modes == [(True, True), (False, False)]
    assert history["val_loss"][0] < history["loss"][0]


def test_num_samples_weigh_what_has_no_leading_dimension(make_handler):
    values = {1.0: 1, 4.0: 3}
    handler = make_handler()

    def step(handler, batch):
        value, samples = batch
        loss = handler.model.weight.sum() * 0 + value
        return StepOutput(loss, num_samples=samples, logs={"value": value})

    handler.set_train_step(step)
    history = handler.fit(list(values.items()), progress_bar=False).history
    assert history["loss"] == history["value"] == [(1.0 + 4.0 * 3) / 4]
    assert handler.state.samples_seen == 4


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(3, 1)
        self.critic = nn.Linear(3, 1)


def test_a_step_with_two_optimizers_does_its_own_backward(recorder, weights):
    from fitkit import NNHandler

    handler = NNHandler(Pair(), "cpu", seed=0)
    optimizers = {
        name: torch.optim.SGD(part.parameters(), lr=0.1)
        for name, part in handler.module.named_children()
    }

    def step(handler, batch):
        losses = {}
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            losses[name] = getattr(handler.model, name)(batch).square().mean()
            losses[name].backward()
            optimizer.step()
        return StepOutput(losses["generator"], logs=losses, backward=False)

    handler.set_train_step(step)
    before = weights(handler)
    history = handler.fit(
        torch.randn(12, 3), batch_size=4, epochs=3, progress_bar=False, callbacks=[recorder]
    ).history
    assert set(history) == {"loss", "generator", "critic"}
    assert history["critic"][2] < history["critic"][0]
    assert not torch.equal(weights(handler), before)
    assert handler.state.optimizer_steps == 9
    assert recorder.count(Event.OPTIMIZER_STEP_END) == 9


def test_a_step_that_wants_fitkit_to_step_needs_an_optimizer():
    from fitkit import NNHandler

    handler = NNHandler(nn.Linear(3, 1), "cpu")
    handler.set_train_step(lambda handler, batch: handler.model(batch).mean())
    with pytest.raises(ConfigurationError, match="no optimizer is set"):
        handler.fit(torch.randn(4, 3), progress_bar=False)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (3.0, "received float"),
        ({"los": 1}, "needs 'loss' and may have .*; received 'los'"),
        ({"loss": torch.tensor(0.0), "accuracy": 1}, "Put further values to log under 'logs'"),
    ],
)
def test_what_a_step_returns_must_be_a_loss(make_handler, make_data, result, sentence):
    handler = make_handler()
    handler.set_train_step(lambda handler, batch: result)
    with pytest.raises(DataError, match=sentence):
        fit(handler, make_data(4))


@pytest.mark.parametrize("name", ["loss", "error"])
def test_a_step_may_not_log_under_a_name_that_is_taken(make_handler, make_data, name):
    handler = make_handler()
    handler.add_metric("error", lambda outputs, targets: 0.0)
    handler.set_train_step(lambda h, b: StepOutput(mean_loss(h, b), logs={name: 1.0}))
    with pytest.raises(DataError, match="choose another name"):
        fit(handler, make_data(4))


@pytest.mark.parametrize("name", ["lr", "val_loss", "epoch"])
def test_a_step_may_not_log_under_a_name_that_fitkit_logs(make_handler, make_data, name):
    handler = make_handler()
    handler.set_train_step(lambda h, b: StepOutput(mean_loss(h, b), logs={name: 1.0}))
    with pytest.raises(DataError, match="choose another name"):
        fit(handler, make_data(4), validation_data=make_data(4))


def test_a_step_that_is_no_function_is_refused(make_handler):
    with pytest.raises(ConfigurationError, match="must be a function"):
        make_handler().set_train_step("step")


# ---- compile ------------------------------------------------------------------------------------


def test_a_compiled_model_trains_the_same_weights(make_handler, make_data, weights, monkeypatch):
    # the real compiler takes half a minute to warm up; tracing is what could go wrong here
    traced = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = make_handler(), make_handler()
    fit(plain, make_data(8), epochs=2)
    fit(compiled, make_data(8), epochs=2, compile=True)
    assert compiled.model is not compiled.module
    torch.testing.assert_close(weights(compiled), weights(plain))
    torch.testing.assert_close(compiled.predict(make_data(4)), plain.predict(make_data(4)))
    assert set(compiled.get_state_dict()["model_state_dict"]) == {"weight", "bias"}
    first = compiled.model
    fit(compiled, make_data(8), compile=True)
    assert compiled.model is first


def test_model_and_loss_are_compiled_as_one_function(make_handler, make_data, monkeypatch):
    compiled_graphs = []

    def noting(graph, inputs):
        compiled_graphs.append(str(graph.graph))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=noting))
    fit(make_handler(), make_data(8), batch_size=4, epochs=2, compile=True)
    (both,) = compiled_graphs
    assert "linear" in both
    assert "mse_loss" in both


class Backend:
    """A backend of torch.compile that counts its graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def test_a_dict_holds_options_of_torch_compile(make_handler, make_data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        usual = fit(make_handler(), make_data(8), epochs=2, compile=True).history["loss"]
    handler, first, second = make_handler(), Backend(), Backend()
    for backend in (first, first, second):
        history = fit(handler, make_data(8), epochs=1, compile={"backend": backend}).history
    assert history["loss"][:2] == usual
    assert (first.graphs, second.graphs) == (1, 1)


def test_a_compiled_run_resumes_exactly(make_handler, make_data):
    def build():
        handler = make_handler()
        handler.add_metric("mae", fitkit.MeanAbsoluteError())
        return handler

    data, how = make_data(8), {"backend": "eager", "dynamic": False}
    testing.assert_resumes_exactly(build, train_data=data, batch_size=4, epochs=2, compile=how)


def test_the_optimizer_takes_no_options_that_are_for_graphs(make_handler, make_data, monkeypatch):
    calls = []

    def noting(function, **options):
        calls.append({**options})
        options.get("options", {}).clear()  # torch takes entries out as well
        return function

    monkeypatch.setattr(torch, "compile", noting)
    how = {"backend": "inductor", "options": {"triton.cudagraphs": True}, "fullgraph": True}
    handler = make_handler(optimizer=torch.optim.AdamW)
    fit(handler, make_data(8), compile=how)
    model, loss, step = calls[-3:]
    assert set(model) == set(loss) == set(how)
    assert step == {"backend": "inductor"}
    assert how["options"] == {"triton.cudagraphs": True}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("reduce-overhead", "must be True, False or a dict .* received 'reduce-overhead'"),
        (1, "must be True, False or a dict"),
        ({"mod": "default"}, "received 'mod': leave it out. Did you mean 'mode'?"),
        ({"fullgraph": "yes"}, r"compile\['fullgraph'\] must be a bool, .* received 'yes'"),
        ({"backend": 3}, "must be a name or a function"),
        ({"backend": "eagre"}, "does not take .*Invalid backend: 'eagre'"),
        ({"mode": "fast"}, "does not take .*Unrecognized mode=fast.* Pass options"),
        ({"options": {"max_autotun": True}}, "does not take .*Unexpected optimization option"),
    ],
)
def test_what_torch_compile_does_not_take_is_refused(make_handler, make_data, how, sentence):
    handler = make_handler()
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        fit(handler, make_data(8), compile=how)
    assert len(str(caught.value)) < 400
    assert handler.model is handler.module
    assert handler.state.global_step == 0


@pytest.mark.parametrize(
    ("optimizer", "options", "is_compiled"),
    [
        (torch.optim.AdamW, {}, True),
        (torch.optim.SGD, {}, False),
        (torch.optim.Adagrad, {}, False),
        (torch.optim.AdamW, {"precision": "fp16"}, False),
    ],
)
def test_the_optimizer_s_step_is_compiled_too_where_that_is_of_use(
    make_handler, make_data, weights, monkeypatch, optimizer, options, is_compiled
):
    compiled_functions = []

    def traced(function, compiler=torch.compile):
        compiled_functions.append(function)
        # tracing an optimizer loads the whole compiler, with its processes
        is_step = getattr(function, "__name__", "") == "step"
        return function if is_step else compiler(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = make_handler(optimizer=optimizer), make_handler(optimizer=optimizer)
    fit(plain, make_data(8), **options)
    for _ in range(2):
        fit(compiled, make_data(8), compile=True, **options)
    fit(plain, make_data(8), **options)
    torch.testing.assert_close(weights(compiled), weights(plain))
    assert (compiled.optimizer.step in compiled_functions) is is_compiled
    assert len(compiled_functions) == 2 + is_compiled


def test_an_optimizer_whose_learning_rate_moves_is_not_compiled_for_each(make_handler, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    handler = make_handler(optimizer=torch.optim.Adam)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1)
    assert handler.parts.compile_optimizer() is None
    handler.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    assert handler.parts.compile_optimizer().optimizer is handler.optimizer


class OnCuda(nn.Parameter):
    """A parameter that claims to be on a CUDA device."""

    is_cuda = True


def test_compiled_steps_count_on_the_device_from_the_first_one_on(monkeypatch):
    """torch's compiler does this for an optimizer without state, but not after a resume."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    here = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    there = torch.optim.Adam([OnCuda(torch.ones(2))])
    plain = torch.optim.SGD([OnCuda(torch.ones(2))])
    for optimizer in (here, there, plain):
        CompiledOptimizer(optimizer, {})
    flags = [one.param_groups[0].get("capturable") for one in (here, there, plain)]
    assert flags == [False, True, None]


def test_flags_that_compiled_steps_set_are_put_back():
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    rollback = make_capturable_undo(optimizer)
    optimizer.param_groups[0]["capturable"] = True
    rollback()
    assert optimizer.param_groups[0]["capturable"] is False
    make_capturable_undo(None)()


def test_compiled_steps_take_counters_of_a_resume_along(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    parameter = OnCuda(torch.ones(2))
    optimizer = torch.optim.NAdam([parameter])
    moved = []
    monkeypatch.setattr(
        "fitkit.handler.torch_compile.move_counters",
        lambda state, device: moved.append((state, device)),
    )
    optimizer.state[parameter] = {"step": torch.tensor(3.0)}
    CompiledOptimizer(optimizer, {})
    assert moved == [(optimizer.state[parameter], parameter.device)]


def test_hooks_may_set_gradients_before_the_step(make_handler, make_data, weights):
    handler = make_handler(lr=1.0)
    before = weights(handler)

    def ones(step, logs):
        for parameter in handler.module.parameters():
            parameter.grad.fill_(1.0)

    fit(handler, make_data(4), callbacks=[LambdaCallback(on_optimizer_step_begin=ones)])
    torch.testing.assert_close(weights(handler), before - 1.0)


# ---- gradients between steps --------------------------------------------------------------------


def test_gradients_are_none_between_steps(make_handler, make_data):
    seen = []
    handler = make_handler()
    parameters = list(handler.module.parameters())
    look = LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.extend(p.grad for p in parameters)
    )
    fit(handler, make_data(8), callbacks=[look])
    assert seen == [None] * 4


def test_an_optimizer_that_clears_gradients_in_its_own_way_is_asked(make_handler, make_data):
    cleared = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            cleared.append(set_to_none)
            super().zero_grad(set_to_none)

    fit(make_handler(optimizer=Own), make_data(8))
    assert cleared[-2:] == [True, True]
    handler = make_handler()
    handler.optimizer.zero_grad = lambda set_to_none: cleared.append("patched")
    fit(handler, make_data(8))
    assert cleared[-1] == "patched"
