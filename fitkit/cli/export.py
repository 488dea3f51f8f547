"""``fitkit export``: weights for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.catalog.file_overview import overview
from fitkit.checkpointing.read_weights import read_weights
from fitkit.cli.command_group import main
from fitkit.cli.printing import echo, force_option, json_option, print_json, require_free
from fitkit.core.errors import CheckpointError
from fitkit.core.formatting import format_bytes
from fitkit.export.onnx import InputSpec, build_model, export_onnx, import_model
from fitkit.export.weight_files import export_safetensors, export_state_dict, tied_names


@main.command(
    examples=[
        "export runs/best.pth --format safetensors -o best.safetensors",
        "export runs/best.pth --format state-dict --no-ema -o weights.pth",
        "export runs/best.pth --format onnx -o best.onnx \\\n"
        "      --model my_models:Net --input-shape batch,1,28,28",
    ]
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["safetensors", "state-dict", "onnx"]),
    help="The format of the file.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file.")
@click.option(
    "--ema/--no-ema",
    default=None,
    help="The EMA weights, or the trained ones. Default: EMA weights, if there are any.",
)
@click.option("--model", metavar="MODULE:CLASS", help="ONNX: where to import the model from.")
@click.option(
    "--input-shape",
    "shapes",
    multiple=True,
    metavar="SIZES",
    help="ONNX: an input, as 1,1,28,28 or batch,128:int64; a name is any size. Repeatable.",
)
@force_option
@json_option
def export(
    path: Path,
    kind: str,
    output: Path,
    ema: bool | None,
    model: str | None,
    shapes: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Export the weights of a checkpoint for other programs.

    PATH may also be a file with only weights. A safetensors file holds one of several tied weights,
    and its header names the others. For ONNX, only the model that you name is imported, and its
    arguments come from the checkpoint.
    """
    if (bool(model), bool(shapes)) != (kind == "onnx", kind == "onnx"):
        raise click.UsageError("--format onnx needs --model and --input-shape; others take none.")
    require_free([output], force)
    if ema and not overview(path).get("ema"):
        raise CheckpointError(f"{str(path)!r} holds no EMA weights: leave out --ema.")
    weights = read_weights(path, averaged=ema is not False)
    left_out: list[str] = []
    tied: dict[str, str] = {}
    if kind == "safetensors":
        tied = tied_names(path, weights)
        left_out = export_safetensors(weights, output, tied)
    elif kind == "state-dict":
        export_state_dict(weights, output)
    else:
        inputs = [InputSpec.parse(shape) for shape in shapes]
        export_onnx(build_model(import_model(str(model)), path, weights), inputs, output)
    size = output.stat().st_size
    if as_json:
        print_json({"written": output, "size_bytes": size, "tied": tied, "left_out": left_out})
        return
    for name, kept in tied.items():
        echo(f"{name} is tied to {kept}")
    for name in left_out:
        echo(f"left out {name}: not a tensor")
    echo(f"wrote {output} ({format_bytes(size)})")
