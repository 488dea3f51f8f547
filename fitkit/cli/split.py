"""``fitkit split`` and ``fitkit merge``: one file, or one for each part."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing import checkpoint, files
from fitkit.checkpointing.saving import DEFAULT_PARTS, merge_parts, part_path
from fitkit.checkpointing.saving import save_multi_from_single as write_parts
from fitkit.cli.group import main
from fitkit.cli.printing import force_option, json_option, print_json, require_free


@main.command(
    examples=[
        "split runs/best.pth",
        "split runs/best.pth --keys model_state_dict --keys history",
        "split runs/best.pth --all",
    ]
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--keys",
    multiple=True,
    metavar="KEY",
    help=f"A part to write; repeatable. Default: {', '.join(DEFAULT_PARTS)}.",
)
@click.option("--all", "every", is_flag=True, help="Write every part, so that merge can undo it.")
@force_option
@json_option
def split(path: Path, keys: tuple[str, ...], every: bool, force: bool, as_json: bool) -> None:
    """Write parts of a checkpoint as files.

    They are next to it: model.pth gives model_model_state_dict.pth and so on. The checkpoint stays
    as it is.
    """
    if every and keys:
        raise click.UsageError("--all means every key: leave out --keys.")
    content = checkpoint.read_without_tensors(path) if every else None
    names = list(content) if isinstance(content, dict) else list(keys or DEFAULT_PARTS)
    written = [part_path(path, str(name)) for name in names]
    require_free(written, force)
    write_parts(path, names)
    _tell(written, as_json)


@main.command(examples=["merge runs/best.pth -o runs/whole.pth"])
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write; default: BASE."
)
@force_option
@json_option
def merge(base: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Build a checkpoint back from its parts.

    BASE is the name that it had when split --all wrote the parts, which are next to it:
    model_history.pth and so on.
    """
    path = output or base
    require_free([path], force)
    files.write(merge_parts(base), path)
    _tell([path], as_json)


def _tell(written: list[Path], as_json: bool) -> None:
    if as_json:
        print_json({"written": written})
    else:
        click.echo("\n".join(f"wrote {path}" for path in written))
