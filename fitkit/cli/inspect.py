"""``fitkit inspect``: the content of a checkpoint at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from fitkit.checkpointing.catalog.file_overview import overview
from fitkit.checkpointing.catalog.metadata import as_damaged_error
from fitkit.checkpointing.catalog.weight_tree import WeightNode, weight_tree, weight_tree_within
from fitkit.cli.command_group import main
from fitkit.cli.printing import (
    echo,
    format_count,
    format_number,
    format_shape,
    format_tensor,
    json_option,
    json_text,
    printable,
    short_repr,
    table,
)
from fitkit.core.errors import listed
from fitkit.core.formatting import format_bytes
from fitkit.core.tree import iterate_tensors

_MOST_LINES = 40  # of weights, unless --depth says otherwise
_WIDTH = 80
_MOST_LINES_OF_A_CALLBACK = 3
_MOST_CHARACTERS = 2000  # of a value


@main.command(
    examples=[
        "inspect runs/best.pth",
        "inspect runs/best.pth --depth 1 --code",
        "inspect runs/best.pth --json | jq .scores.val_loss.best",
    ]
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    help="Levels of modules to show. Default: as many as fit into about forty lines.",
)
@click.option(
    "--code", is_flag=True, help="Also show the source of the model's class, if it was stored."
)
@json_option
def inspect(path: Path, depth: int | None, code: bool, as_json: bool) -> None:
    """Show what a checkpoint holds.

    Position in the run, scores, callbacks, weights by module. PATH may also be a file with only
    weights, or any other file that torch.save wrote. Tensors are not read, so large files take no
    longer; verify checks them.
    """
    content = overview(path)
    weights = content.pop("weights", {})
    with as_damaged_error(path):  # parts of the content are not validated
        if as_json:
            tree = weight_tree(weights) if depth is None else weight_tree(weights, depth)
            rows = [{**vars(branch), "dtypes": sorted(branch.dtypes)} for branch in tree]
            lines = json_text({**content, "weights": rows}).split("\n")
        else:
            tree = (
                weight_tree_within(weights, _MOST_LINES)
                if depth is None
                else weight_tree(weights, depth)
            )
            lines = _as_lines(content, tree, code)
    echo(*lines)


def _as_lines(content: Mapping[str, Any], tree: list[WeightNode], code: bool) -> list[str]:
    parts = [_head(content), _scores(content), _callbacks(content), _other(content), _tree(tree)]
    if code and content["kind"] == "checkpoint":
        source = content["model"]["code"] or "The model's code is not stored."
        parts.append(iter(source.expandtabs().split("\n")))
    found = [["", *lines] for part in parts if (lines := list(part))]
    return [line for lines in found for line in lines][1:]


def _head(content: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"checkpoint": "checkpoint", "weights": "weights only", "other": "no checkpoint"}
    yield f"{content['path']}: {kinds[content['kind']]}, {format_bytes(content['size_bytes'])}"
    if content["kind"] != "checkpoint":
        return
    yield (
        f"format {content['format_version']}, written by fitkit {content['fitkit_version']} with "
        f"torch {content['pytorch_version']}"
    )
    yield ""
    model, scheduler, ema = content["model"], content["scheduler"], content["ema"]
    rows = {
        "place": _position(content["progress"]),
        "stopped": content["progress"]["stop_reason"],
        "model": f"{_call(model)}, {model['type']}",
        "code": model["code"] and "stored: --code shows it",
        "loss": _call(content["loss"]),
        "optimizer": _optimizer(content["optimizer"]),
        "scheduler": scheduler and f"{_call(scheduler)}, every {scheduler['interval']}",
        "averaging": ema and f"decay {ema['decay']}, {format_count(ema['num_averaged'], 'step')}",
        "seed": None if content["seed"] is None else str(content["seed"]),
    }
    for name, text in rows.items():
        if text:
            yield from _wrapped(f"{name:<11}{text}", indent=11)


def _position(progress: Mapping[str, Any]) -> str:
    batches = format_count(progress["batch"], "batch", "es")
    next_epoch = {
        "train": f", then {batches} of the next",
        "validate": ", the next trained but not validated" + _sets_done(progress),
        "test": f", the next trained and {batches} of {_validation(progress)} done",
        "end": ", the next trained but not ended",
    }.get(progress["phase"], "")
    optimizer_steps = format_count(progress["optimizer_steps"], "optimizer step")
    samples = format_count(progress["samples_seen"], "sample")
    return (
        f"{format_count(progress['epoch'], 'epoch')} done{next_epoch}; step "
        f"{progress['global_step']} ({optimizer_steps}, {samples})"
    )


def _validation(progress: Mapping[str, Any]) -> str:
    name = progress.get("evaluation_set")
    return f"its validation set {name!r}" if name else "its validation"


def _sets_done(progress: Mapping[str, Any]) -> str:
    done = progress.get("validated")
    return f" but on {listed(done)}" if done else ""


def _call(part: Mapping[str, Any] | None) -> str:
    """A component as the call that creates it."""
    if not part:
        return ""
    if part["class"] is None:
        return "a ready module"
    kwargs = part["kwargs"]
    inside = "..." if kwargs is None else ", ".join(f"{k}={_value(v)}" for k, v in kwargs.items())
    return f"{part['class']}({inside})"


def _optimizer(part: Mapping[str, Any]) -> str:
    if "lr" not in part:
        return _call(part)
    rates = ", ".join(dict.fromkeys(map(format_number, part["lr"])))
    tensors = format_count(part["num_tensors"], "tensor")
    return f"{_call(part)}, lr now {rates}; state of {tensors}, {format_bytes(part['size_bytes'])}"


def _value(value: Any) -> str:
    """A value on one line; tensors by shape and dtype, or by number and size."""
    if isinstance(value, Tensor):
        return format_tensor(value)
    tensors = list(iterate_tensors(value))
    if tensors:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return f"<{format_count(len(tensors), 'tensor')}, {format_bytes(size)}>"
    return format_number(value) if isinstance(value, float) else short_repr(value, _MOST_CHARACTERS)


def _wrapped(text: str, indent: int, most_lines: int | None = None) -> list[str]:
    return textwrap.wrap(
        printable(text),
        _WIDTH,
        subsequent_indent=" " * indent,
        max_lines=most_lines,
        placeholder=" ...",
        break_on_hyphens=False,
    )


def _scores(content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("scores"):
        rows: list[tuple[str, ...]] = [("scores", "last", "best", "in epoch")]
        for name, score in content["scores"].items():
            values = (score["last"], score["best"], score["best_epoch"])
            rows.append((f"  {name}", *map(format_number, values)))
        yield from table(rows, right=(1, 2, 3))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict, str)) and not value)


def _callbacks(content: Mapping[str, Any]) -> Iterator[str]:
    callbacks = content.get("callbacks")
    if callbacks:
        yield "callbacks"
        width = max(map(len, callbacks)) + 4
        for name, state in callbacks.items():
            fields = [
                f"{key}={_value(value)}" for key, value in state.items() if not _is_empty(value)
            ]
            line = f"{'  ' + name:<{width}}{'  '.join(fields)}"
            yield from _wrapped(line, width, _MOST_LINES_OF_A_CALLBACK)


def _other(content: Mapping[str, Any]) -> Iterator[str]:
    """The content of a file of another program, with one line for each key."""
    if "content" in content:
        value = content["content"]
        yield f"a {type(value).__name__}"
        if isinstance(value, Mapping):
            rows = [(f"  {key}", f"{type(v).__name__} {_value(v)}") for key, v in value.items()]
            yield from (line[:_WIDTH] for line in table(rows))


def _tree(tree: list[WeightNode]) -> Iterator[str]:
    if not tree or not tree[0].num_tensors:
        return
    rows = [("weights", "shape", "dtype", "values", "size")]
    for branch in tree:
        name = branch.name.rpartition(".")[2] if branch.level else "all"
        tensors = format_count(branch.num_tensors, "tensor")
        shape = tensors if branch.shape is None else format_shape(branch.shape)
        dtype = next(iter(branch.dtypes)) if len(branch.dtypes) == 1 else "mixed"
        values, size = f"{branch.num_values:,}", format_bytes(branch.size_bytes)
        rows.append((f"  {'  ' * branch.level}{name}", shape, dtype, values, size))
    yield from table(rows, right=(3, 4))
