"""``fitkit inspect``: a checkpoint at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from fitkit.checkpointing.overview import overview, told_as_damage
from fitkit.checkpointing.weight_tree import Branch, branches, fitting
from fitkit.cli.group import main
from fitkit.cli.printing import (
    count_text,
    json_option,
    json_text,
    number_text,
    shape_text,
    size_text,
    table,
)
from fitkit.core.tree import iterate_tensors

_MOST_LINES = 40  # of weights, unless --depth says otherwise
_WIDTH = 80
_MOST_LINES_OF_A_CALLBACK = 3


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
    help="Levels of modules to show; default: as many as some forty lines allow.",
)
@click.option("--code", is_flag=True, help="Also show the source of the model's class, if stored.")
@json_option
def inspect(path: Path, depth: int | None, code: bool, as_json: bool) -> None:
    """Say what a checkpoint holds.

    Place in the run, scores, callbacks, weights by module. PATH may also be a file of weights, or
    any other file that torch.save wrote. Tensors are not read, so this takes no longer for large
    files; see verify for their checksums.
    """
    found = overview(path)
    weights = found.pop("weights", {})
    with told_as_damage(path):  # a file decides what is in its parts
        if as_json:
            shown = branches(weights) if depth is None else branches(weights, depth)
            text = json_text({**found, "weights": [_as_json(one) for one in shown]})
        else:
            shown = fitting(weights, _MOST_LINES) if depth is None else branches(weights, depth)
            text = _text(found, shown, code)
    click.echo(text)


def _text(found: Mapping[str, Any], shown: list[Branch], code: bool) -> str:
    parts = [_head(found), _scores(found), _callbacks(found), _content(found), _tree(shown)]
    if code and found["kind"] == "checkpoint":
        parts.append(iter([found["model"]["code"] or "The model's code is not stored."]))
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part)))


def _as_json(branch: Branch) -> dict[str, Any]:
    return {**vars(branch), "dtypes": sorted(branch.dtypes)}


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"checkpoint": "checkpoint", "weights": "weights only", "other": "no checkpoint"}
    yield f"{found['path']}: {kinds[found['kind']]}, {size_text(found['size_bytes'])}"
    if found["kind"] != "checkpoint":
        return
    yield (
        f"format {found['format_version']}, written by fitkit {found['fitkit_version']} with torch "
        f"{found['pytorch_version']}"
    )
    yield ""
    rows = {
        "place": _place(found["progress"]),
        "stopped": found["progress"]["stop_reason"],
        "model": f"{_call(found['model'])}, {found['model']['type']}",
        "code": found["model"]["code"] and "stored: --code shows it",
        "loss": _call(found["loss"]),
        "optimizer": _optimizer(found["optimizer"]),
        "scheduler": found["scheduler"]
        and f"{_call(found['scheduler'])}, every {found['scheduler']['interval']}",
        "averaging": found["ema"]
        and f"decay {found['ema']['decay']}, {count_text(found['ema']['num_averaged'], 'step')}",
        "seed": None if found["seed"] is None else str(found["seed"]),
    }
    for name, text in rows.items():
        if text:
            yield from _wrapped(f"{name:<11}{text}", indent=11)


def _place(progress: Mapping[str, Any]) -> str:
    batches = count_text(progress["batch"], "batch", "es")
    next_one = {
        "train": f", then {batches} of the next",
        "validate": ", the next trained but not validated",
        "test": f", the next trained and {batches} of its validation done",
        "end": ", the next trained but not ended",
    }
    return (
        f"{count_text(progress['epoch'], 'epoch')} done{next_one.get(progress['phase'], '')}; step "
        f"{progress['global_step']} ({count_text(progress['optimizer_steps'], 'optimizer step')}, "
        f"{count_text(progress['samples_seen'], 'sample')})"
    )


def _call(part: Mapping[str, Any] | None) -> str:
    """A part as the call that makes it."""
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
    rates = ", ".join(dict.fromkeys(map(number_text, part["lr"])))
    tensors = count_text(part["num_tensors"], "tensor")
    return f"{_call(part)}, lr now {rates}; state of {tensors}, {size_text(part['size_bytes'])}"


def _value(value: Any) -> str:
    """A value on one line; of tensors only what they are."""
    if isinstance(value, Tensor):
        return f"<{shape_text(value.shape)} {str(value.dtype).removeprefix('torch.')}>"
    tensors = list(iterate_tensors(value))
    if tensors:
        size = sum(one.numel() * one.element_size() for one in tensors)
        return f"<{count_text(len(tensors), 'tensor')}, {size_text(size)}>"
    return number_text(value) if isinstance(value, float) else repr(value)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict, str)) and not value)


def _wrapped(text: str, indent: int, most_lines: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        subsequent_indent=" " * indent,
        max_lines=most_lines,
        placeholder=" ...",
        break_on_hyphens=False,
    )


def _scores(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("scores"):
        rows: list[tuple[str, ...]] = [("scores", "last", "best", "in epoch")]
        for name, one in found["scores"].items():
            values = (one["last"], one["best"], one["best_epoch"])
            rows.append((f"  {name}", *map(number_text, values)))
        yield from table(rows, right=(1, 2, 3))


def _callbacks(found: Mapping[str, Any]) -> Iterator[str]:
    callbacks = found.get("callbacks")
    if callbacks:
        yield "callbacks"
        width = max(map(len, callbacks)) + 4
        for name, state in callbacks.items():
            told = {field: value for field, value in state.items() if not _is_nothing(value)}
            fields = "  ".join(f"{field}={_value(value)}" for field, value in told.items())
            line = f"{'  ' + name:<{width}}{fields}"
            yield from _wrapped(line, width, _MOST_LINES_OF_A_CALLBACK)


def _content(found: Mapping[str, Any]) -> Iterator[str]:
    """What a file of another kind holds, as far as a line for each key tells it."""
    if "content" in found:
        content = found["content"]
        yield f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            rows = [(f"  {key}", f"{type(v).__name__} {_value(v)}") for key, v in content.items()]
            yield from (line[:_WIDTH] for line in table(rows))


def _tree(shown: list[Branch]) -> Iterator[str]:
    if not shown or not shown[0].num_tensors:
        return
    rows = [("weights", "shape", "dtype", "values", "size")]
    for one in shown:
        label = "  " * one.level + (one.name.rpartition(".")[2] if one.level else "all")
        shape = (
            count_text(one.num_tensors, "tensor") if one.shape is None else shape_text(one.shape)
        )
        dtype = next(iter(one.dtypes)) if len(one.dtypes) == 1 else "mixed"
        rows.append((f"  {label}", shape, dtype, f"{one.num_values:,}", size_text(one.size_bytes)))
    yield from table(rows, right=(3, 4))
