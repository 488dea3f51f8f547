"""``fitkit split`` and ``fitkit merge``: a checkpoint as one file per key, and back."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.saving import ALL_KEYS, DEFAULT_PARTS, merge_parts, part_path, parts_of
from fitkit.checkpointing.saving import save_multi_from_single as write_parts
from fitkit.checkpointing.storage import atomic_write, run_record, single_or_sharded
from fitkit.cli.command_group import main
from fitkit.cli.printing import force_option, json_option, print_written, require_free


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
    help=f"A key to write; repeatable. Default: {', '.join(DEFAULT_PARTS)}.",
)
@click.option("--all", "every", is_flag=True, help="Write every key, so that merge can undo it.")
@force_option
@json_option
def split(path: Path, keys: tuple[str, ...], every: bool, force: bool, as_json: bool) -> None:
    """Write the keys of a checkpoint to one file each.

    The files are next to it: model.pth gives model_model_state_dict.pth and so on. The checkpoint
    is not changed.
    """
    if every and keys:
        raise click.UsageError("--all means every key: leave out --keys.")
    state = single_or_sharded.read_without_tensors(path)
    names = list(state) if every and isinstance(state, dict) else list(keys or DEFAULT_PARTS)
    written = list(parts_of(state, path, names))
    require_free(written, force)
    write_parts(path, names)
    print_written(written, as_json)


@main.command(examples=["merge runs/best.pth -o runs/whole.pth"])
@click.argument("base", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write. Default: BASE."
)
@force_option
@json_option
def merge(base: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Build a checkpoint from the files of split --all.

    BASE is the path of the checkpoint before split; the files are next to it: model_history.pth and
    so on.
    """
    path = output or base
    require_free([path], force)
    record = run_record.read(part_path(base, ALL_KEYS))
    atomic_write.write(merge_parts(base), path, record=record)
    print_written([path], as_json)
