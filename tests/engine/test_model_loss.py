"""Models that compute their loss themselves, and what that loss is a mean over."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fitkit import Callback, ConfigurationError, DataError, NNHandler
from fitkit.engine.model_loss import (
    ModelLoss,
    is_label,
    model_loss_weight,
    named_inputs,
    takes_labels,
)

IGNORED = -100


class Output(OrderedDict):
    """A mapping with attributes, as transformers' ``ModelOutput``, and without those not set."""

    def __init__(self, *args, **entries):
        super().__init__(*args, **{n: value for n, value in entries.items() if value is not None})
        self.__dict__.update(loss=None, logits=None)
        self.__dict__.update(self)


class Tagger(nn.Module):
    """Tags each token; ``loss`` is the mean over the labels that are not ignored."""

    loss_type = "ForTokenClassification"

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=3, problem_type=None)
        self.embed = nn.Embedding(9, 3)
        self.got = []

    def forward(self, ids, mask=None, labels=None):
        self.got.append(labels is not None)
        logits = self.embed(ids)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Output(loss=loss, logits=logits)


class AsObject(Tagger):
    def forward(self, ids, labels=None):
        output = super().forward(ids, labels=labels)
        return SimpleNamespace(loss=output.loss, logits=output.logits)


class AsDict(Tagger):
    def forward(self, ids, **labels):
        return dict(super().forward(ids, **labels))


IDS = torch.arange(24).reshape(6, 4) % 9
LABELS = IDS % 3
PADDED = LABELS.clone()
PADDED[:3, 2:] = IGNORED
PADDED[5] = IGNORED


def make_handler(model):
    handler = NNHandler(model, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.5)
    return handler


def fit(handler, data, **options):
    return handler.fit(data, batch_size=2, shuffle=False, progress_bar=False, **options)


def step_of(model, batch):
    return ModelLoss(model)(model, batch, lambda batch: batch)


# ---- fit, evaluate and predict ------------------------------------------------------------------


@pytest.mark.parametrize("model", [Tagger, AsObject, AsDict])
def test_it_trains_as_with_a_loss_function(model):
    own, other = make_handler(model), make_handler(Tagger)
    other.set_loss_fn(
        lambda outputs, labels: nn.functional.cross_entropy(
            outputs["logits"].flatten(0, 1), labels.flatten()
        )
    )
    data = {"ids": IDS, "labels": LABELS}
    histories = [fit(handler, data, epochs=3, validation_data=data) for handler in (own, other)]
    assert histories[0].history == histories[1].history
    assert histories[0].history["loss"][2] < histories[0].history["loss"][0]
    assert torch.equal(own.module.embed.weight, other.module.embed.weight)
    assert own.evaluate(data) == other.evaluate(data)
    assert own.module.got[-1]
    assert not other.module.got[-1]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_labels_that_are_ignored_have_no_part_in_any_mean(batch_size):
    handler = make_handler(Tagger)
    data = {"ids": IDS, "labels": PADDED}  # the last sample is a batch of padding of its own
    expected = nn.functional.cross_entropy(
        handler.module.embed(IDS).flatten(0, 1), PADDED.flatten(), ignore_index=IGNORED
    )
    value = handler.evaluate(data, batch_size=batch_size)["loss"]
    assert value == pytest.approx(expected.item(), rel=1e-6)
    window = -(-6 // batch_size)
    before = handler.module.embed.weight.detach().clone()
    (gradient,) = torch.autograd.grad(expected, handler.module.embed.weight)
    handler.fit(
        data,
        batch_size=batch_size,
        shuffle=False,
        progress_bar=False,
        gradient_accumulation_steps=window,
    )
    torch.testing.assert_close(handler.module.embed.weight, before - 0.5 * gradient)
    assert handler.history.history["loss"] == [pytest.approx(expected.item(), rel=1e-6)]


def test_metrics_get_the_outputs_and_the_labels():
    seen = []

    def right(outputs, targets):
        seen.append((type(outputs), targets))
        return (outputs["logits"].argmax(-1) == targets).float().mean()

    handler = make_handler(Tagger)
    handler.add_metric("right", right)
    values = handler.evaluate({"ids": IDS, "labels": LABELS}, batch_size=6)
    expected = handler.module.embed(IDS).argmax(-1) == LABELS
    assert values["right"] == pytest.approx(float(expected.float().mean()))
    assert seen[0][0] is Output
    assert torch.equal(seen[0][1], LABELS)


def test_predict_leaves_the_labels_out():
    handler = make_handler(Tagger)
    outputs = handler.predict({"ids": IDS, "labels": LABELS}, batch_size=4)
    assert torch.equal(outputs["logits"], handler.module.embed(IDS))
    assert list(outputs) == ["logits"]
    assert not any(handler.module.got)
    assert torch.equal(handler.predict({"ids": IDS})["logits"], outputs["logits"])


def test_a_loss_function_or_step_has_precedence():
    handler = make_handler(Tagger)
    data = {"ids": IDS, "labels": LABELS}
    handler.set_loss_fn(lambda outputs, labels: 0 * outputs.logits.sum() + 3)
    assert handler.evaluate(data) == {"loss": 3.0}
    other = make_handler(Tagger)
    other.set_train_step(lambda handler, batch: handler.model(batch["ids"]).logits.sum() * 0 + 4)
    assert other.evaluate(data) == {"loss": 4.0}


def test_resume_and_checkpoints_need_nothing_more(tmp_path):
    handler = make_handler(Tagger)
    fit(handler, {"ids": IDS, "labels": LABELS})
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", "cpu")
    for one in (handler, loaded):
        fit(one, {"ids": IDS, "labels": LABELS})
    assert torch.equal(loaded.module.embed.weight, handler.module.embed.weight)


@pytest.mark.slow
def test_it_may_be_compiled():
    torch.compiler.reset()
    whole, eager = make_handler(Tagger), make_handler(Tagger)
    for handler in (whole, eager):
        handler.module.got = SimpleNamespace(append=lambda seen: None)
    fit(whole, {"ids": IDS, "labels": LABELS}, compile={"backend": "eager"})
    fit(eager, {"ids": IDS, "labels": LABELS})
    torch.testing.assert_close(whole.module.embed.weight, eager.module.embed.weight)


# ---- errors -------------------------------------------------------------------------------------


def test_a_model_that_takes_no_labels_is_refused_before_training():
    started = []

    class Starts(Callback):
        def on_train_begin(self, logs):
            started.append(True)

    handler = make_handler(nn.Linear(4, 1))
    with pytest.raises(ConfigurationError, match=r"no loss function is set: call .*set_loss_fn"):
        fit(handler, (torch.ones(6, 4), torch.ones(6, 1)), callbacks=[Starts()])
    assert not started


@pytest.mark.parametrize("data", [(IDS, LABELS), IDS])
def test_the_batch_must_be_a_mapping(data):
    with pytest.raises(ConfigurationError, match=r"must be a mapping with labels, received"):
        fit(make_handler(Tagger), data)


def test_a_missing_loss_names_labels_and_setter():
    sentence = r"Tagger returned no loss \(a mapping with the keys 'logits'\).*'ids', 'mask'.*"
    with pytest.raises(ConfigurationError, match=sentence + r"'labels', or call .*set_loss_fn"):
        fit(make_handler(Tagger), {"ids": IDS, "mask": IDS})


def test_a_loss_that_is_no_scalar_is_refused():
    class Many(Tagger):
        def forward(self, ids, labels=None):
            return Output(loss=self.embed(ids))

    with pytest.raises(DataError, match="loss must be a scalar tensor"):
        fit(make_handler(Many), {"ids": IDS, "labels": LABELS})


def test_the_table_of_a_handler_says_whose_loss_it_is():
    assert "of the model, or set_loss_fn" in make_handler(Tagger)._repr_html_()
    assert "not set: set_loss_fn" in make_handler(nn.Linear(2, 1))._repr_html_()


# ---- labels -------------------------------------------------------------------------------------


def test_labels_are_known_by_name():
    names = ["labels", "next_sentence_label", "start_positions", "end_positions", "decoder_labels"]
    assert all(map(is_label, names))
    assert not any(map(is_label, ["input_ids", "position_ids", "x"]))


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ({"ids": 1, "labels": 2, "mc_labels": 3}, {"ids": 1}),
        ({"ids": 1, "mask": 2}, {"ids": 1, "mask": 2}),
        ({"inputs": 1, "labels": 2}, None),
        ({0: 1}, None),
        ((1, 2), None),
    ],
)
def test_inputs_that_the_model_takes_by_name(batch, inputs):
    assert named_inputs(Tagger(), batch) == inputs


def test_predict_passes_what_is_not_named_as_before():
    class Any(nn.Module):
        def forward(self, x, mask=None, **options):
            return x if mask is None else x * mask

    x = torch.ones(3, 1)
    handler = NNHandler(Any(), "cpu")
    assert torch.equal(handler.predict({"inputs": x, "labels": x}), x)
    assert torch.equal(handler.predict({"x": x, "mask": 2 * x}), 2 * x)
    assert torch.equal(handler.predict((x, x)), x)


def test_several_labels_are_a_mapping_of_targets():
    class Answers(nn.Module):
        def forward(self, ids, start_positions=None, end_positions=None):
            return SimpleNamespace(loss=ids.float().mean())

    targets = {"start_positions": LABELS[:, 0], "end_positions": LABELS[:, 1]}
    model = Answers()
    assert step_of(model, {"ids": IDS, **targets}).targets == targets


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (Tagger(), True),
        (AsDict(), True),
        (nn.Linear(2, 1), False),
        (nn.Sequential(), False),
        (nn.Identity(), False),
    ],
)
def test_whether_a_model_takes_labels_is_read_from_its_signature(model, takes):
    assert takes_labels(model) is takes


def test_one_that_has_no_signature_may_take_them():
    model = nn.Linear(2, 1)
    model.forward = max  # written in C
    assert takes_labels(model)


# ---- weights ------------------------------------------------------------------------------------


def weight(kind, batch, by="loss_type", **config):
    model = nn.Module() if by == "loss_type" else type(kind, (nn.Module,), {})()
    model.config = SimpleNamespace(num_labels=3, problem_type=None, **config)
    if by == "loss_type":
        model.loss_type = kind
    found = model_loss_weight(model, batch)
    return found if found is None else int(found)


@pytest.mark.parametrize("by", ["loss_type", "class"])
@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        # 24 labels, 6 + 4 of them ignored; the first column, which a shift drops, has one of them
        ("ForTokenClassification", {}, 14),
        ("ForMaskedLM", {}, 14),
        ("ForCausalLM", {}, 9),
        ("ForConditionalGeneration", {"is_encoder_decoder": False}, 9),
        ("ForConditionalGeneration", {"is_encoder_decoder": True}, 14),
        ("ForCausalLM", {"model_type": "bart"}, 14),
        ("ForCausalLM", {"model_type": "llama"}, 9),
        ("ForPreTraining", {}, None),
        ("ForObjectDetection", {}, None),
    ],
)
def test_tokens(kind, config, expected, by):
    assert weight(kind, {"labels": PADDED}, by, **config) == expected


def test_names_without_a_loss_type():
    batch = {"labels": PADDED}
    assert weight("GPT2LMHeadModel", batch, by="class") == 9
    assert weight("GPT2DoubleHeadsModel", batch, by="class") == 9
    assert weight("XLNetLMHeadModel", batch, by="class", model_type="xlnet") == 14
    assert weight("FSDPBertForMaskedLM", batch, by="class") == 14
    assert weight("Tagger", batch, by="class") is None


def test_labels_that_are_already_shifted():
    assert weight("ForCausalLM", {"labels": LABELS, "shift_labels": PADDED}) == 14


def test_a_batch_of_padding_weighs_nothing():
    batch = {"labels": torch.full((2, 4), IGNORED)}
    assert weight("ForMaskedLM", batch) == weight("ForCausalLM", batch) == 0


CLASSES = torch.tensor([0, 2, IGNORED, 1])


@pytest.mark.parametrize(
    ("kind", "labels", "config", "expected"),
    [
        ("ForSequenceClassification", CLASSES, {}, 3),
        ("ForImageClassification", CLASSES, {}, 3),
        ("ForSequenceClassification", CLASSES.float(), {}, None),
        ("ForSequenceClassification", torch.ones(4, 3), {}, None),
        ("ForMultipleChoice", CLASSES, {}, None),
        ("ForCTC", PADDED, {"ctc_loss_reduction": "mean"}, None),
        ("ForSemanticSegmentation", PADDED, {"semantic_loss_ignore_index": 2}, None),
    ],
)
def test_classes(kind, labels, config, expected):
    if kind == "ForSemanticSegmentation":
        expected = int((labels != 2).sum())
    assert weight(kind, {"labels": labels}, **config) == expected


def test_a_regression_on_whole_numbers_counts_samples():
    model = nn.Module()
    model.loss_type = "ForSequenceClassification"
    for config in ({"num_labels": 1, "problem_type": None}, {"problem_type": "regression"}):
        model.config = SimpleNamespace(**{"num_labels": 2, **config})
        assert model_loss_weight(model, {"labels": CLASSES}) is None


def test_answers_outside_of_the_text_are_not_counted():
    batch = {"input_ids": IDS, "start_positions": torch.tensor([0, 3, 4, 9, 1, 2])}
    assert weight("ForQuestionAnswering", batch) == 4
    assert weight("ForQuestionAnswering", {"input_ids": IDS}) is None


def test_a_loss_that_is_a_sum_is_refused():
    with pytest.raises(ConfigurationError, match="ctc_loss_reduction = 'mean'"):
        weight("ForCTC", {"labels": PADDED}, ctc_loss_reduction="sum")


def test_a_model_without_a_configuration_counts_samples():
    assert model_loss_weight(nn.Linear(2, 1), {"labels": PADDED}) is None


def test_the_step_s_output_has_the_weight():
    model = Tagger()
    output = step_of(model, {"ids": IDS, "labels": PADDED})
    assert int(output.weight) == 14
    parts = [
        step_of(model, {"ids": IDS[rows], "labels": PADDED[rows]})
        for rows in (slice(0, 1), slice(1, 5))
    ]
    total = sum(part.loss * part.weight for part in parts) / sum(part.weight for part in parts)
    torch.testing.assert_close(total, output.loss)


# ---- transformers itself ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_of_transformers():
    """The losses of parts of a batch, combined by weight, are the loss of the whole batch."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 8}
    bert = transformers.BertConfig(**sizes)
    models = [
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)),
        transformers.BertForMaskedLM(bert),
        transformers.BertLMHeadModel(transformers.BertConfig(**sizes, is_decoder=True)),
    ]
    for model in models:
        model.eval()
        whole = step_of(model, {"input_ids": IDS, "labels": PADDED})
        parts = [
            step_of(model, {"input_ids": IDS[rows], "labels": PADDED[rows]})
            for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]
        total = sum(part.loss * part.weight for part in parts) / sum(part.weight for part in parts)
        torch.testing.assert_close(total, whole.loss)
    handler = make_handler(models[0])
    history = fit(handler, {"input_ids": IDS, "labels": LABELS}, epochs=2)
    assert history.history["loss"][1] < history.history["loss"][0]
    outputs = handler.predict({"input_ids": IDS, "labels": LABELS}, tensors_only=True)
    assert outputs.logits.shape == (6, 4, 9)
    assert list(outputs) == ["logits"]
