"""The loss that a model computes itself, such as those of transformers, and what it is a mean over.

transformers names the kind of a model's loss in ``model.loss_type``, else in the name of its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fitkit.core.errors import ConfigurationError, describe, listed
from fitkit.core.types import StepOutput

IGNORED = -100
# by the end of a class name or loss type; "LMHeadModel" and the like have no loss type
_TOKENS = ("ForMaskedLM", "ForTokenClassification")
_NEXT_TOKENS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "DoubleHeadsModel")
_CLASSES = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)
# decoders of these families compare outputs and labels at the same position, as their
# encoder-decoders do: their labels are shifted by the caller
_NOT_SHIFTED = (
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "flaubert", "marian", "mbart"),
    *("mvp", "pegasus", "plbart", "trocr", "whisper", "xlm", "xlnet"),
)


def is_label(name: str) -> bool:
    """Whether an argument of a model's ``forward`` is a target, as transformers names them."""
    return "label" in name or name in ("start_positions", "end_positions")


def named_inputs(model: nn.Module, batch: Any) -> dict[str, Any] | None:
    """The entries of a batch without labels, if ``forward`` takes all of them by name."""
    if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
        return None
    inputs = {name: value for name, value in batch.items() if not is_label(name)}
    try:
        inspect.signature(model.forward).bind(**inputs)
    except (TypeError, ValueError):
        return None
    return inputs


def takes_labels(model: nn.Module) -> bool:
    """Whether the model's ``forward`` has an argument for labels, or takes any by name."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # one that is not written in Python
        return True
    return any(is_label(p.name) or p.kind is p.VAR_KEYWORD for p in parameters)


class ModelLoss:
    """The loss that a model returns for a batch, a mapping that is passed to it by name.

    Args:
        module: the model without wrappers, which says what its loss is a mean over.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, model: nn.Module, batch: Any, to_device: Callable[[Any], Any]) -> StepOutput:
        """The output of a step.

        Args:
            model: the model as it is called.
            batch: inputs and labels, on the host: their weight can be read without waiting.
            to_device: moves a batch to the device.

        Raises:
            ConfigurationError: the batch is no mapping, or the model returned no loss.
        """
        if not isinstance(batch, Mapping):
            raise ConfigurationError(
                f"no loss function is set, so the model is to compute its loss: the batch must be "
                f"a mapping with labels, received {describe(batch)}. Or call "
                f"handler.set_loss_fn(...)."
            )
        weight = model_loss_weight(self._module, batch)
        batch = to_device(batch)
        outputs = model(**batch)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else _loss_of(outputs)
        if loss is None:
            raise ConfigurationError(
                f"{type(self._module).__name__} returned no loss ({describe(outputs)}) for a batch "
                f"with the keys {listed(map(str, batch))}: add the labels that it computes its "
                f"loss from, usually 'labels', or call handler.set_loss_fn(...)."
            )
        labels = {name: value for name, value in batch.items() if is_label(name)}
        targets = next(iter(labels.values())) if len(labels) == 1 else labels
        return StepOutput(loss, outputs, targets, weight=weight)


def _loss_of(outputs: Any) -> Any:
    return getattr(outputs, "loss", None)


def model_loss_weight(model: nn.Module, batch: Mapping[str, Any]) -> int | Tensor | None:
    """What the loss of a transformers model is a mean over: the labels that it does not ignore.

    ``None`` means the samples of the batch: the models of other libraries, multi-label
    classification, regression, and losses that add several means, as for pretraining.

    Raises:
        ConfigurationError: the loss is configured as a sum.
    """
    labels, config = batch.get("labels"), getattr(model, "config", None)
    if config is None:
        return None
    kind = str(getattr(model, "loss_type", None) or type(model).__name__)
    if kind.endswith("ForQuestionAnswering"):
        return _answers_inside(batch)
    if not isinstance(labels, Tensor):
        return None
    if kind.endswith("ForCTC") and getattr(config, "ctc_loss_reduction", None) == "sum":
        raise ConfigurationError(
            "the model's loss is a sum (ctc_loss_reduction='sum'), so it depends on the batch size:"
            " set model.config.ctc_loss_reduction = 'mean'."
        )
    if kind.endswith("ForSemanticSegmentation"):
        ignored = getattr(config, "semantic_loss_ignore_index", 255)
        return _count(labels != ignored)
    if kind.endswith(_NEXT_TOKENS):
        shifted = batch.get("shift_labels")
        if isinstance(shifted, Tensor):
            return _count(shifted != IGNORED)
        return _count((labels[..., 1:] if _shifts_labels(config) else labels) != IGNORED)
    is_class = kind.endswith(_CLASSES) and not labels.is_floating_point()
    is_class = is_class and getattr(config, "problem_type", None) != "regression"
    if kind.endswith(_TOKENS) or (is_class and getattr(config, "num_labels", 2) > 1):
        return _count(labels != IGNORED)
    return None


def _count(is_counted: Tensor) -> Tensor:
    return torch.count_nonzero(is_counted)


def _shifts_labels(config: Any) -> bool:
    is_seq2seq = getattr(config, "is_encoder_decoder", False)
    return not is_seq2seq and getattr(config, "model_type", "") not in _NOT_SHIFTED


def _answers_inside(batch: Mapping[str, Any]) -> Tensor | None:
    """Answers that lie inside the text; those outside of it are ignored."""
    starts = batch.get("start_positions")
    text = batch.get("input_ids", batch.get("inputs_embeds"))
    if not isinstance(starts, Tensor) or not isinstance(text, Tensor):
        return None
    return torch.count_nonzero(starts < text.shape[1])
