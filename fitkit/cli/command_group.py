"""The click group of all commands: help with examples, exit codes, errors as one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from fitkit.cli.printing import printable
from fitkit.core.errors import ConfigurationError, FitkitError
from fitkit.version import __version__

# click's own code for wrong usage is 2 as well
EXIT_NEGATIVE, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


class Command(click.Command):
    """A command whose help ends with examples and the meaning of its exit codes.

    Args:
        *args: as ``click.Command``.
        examples: command lines, without the name of the program.
        exit_1: what exit code 1 means; ``""``: the command does not use it.
        **kwargs: as ``click.Command``.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), exit_1: str = "", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.exit_1 = exit_1

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples and exit codes."""
        _write_examples(formatter, self.examples)
        meanings = {
            0: "success",
            EXIT_NEGATIVE: self.exit_1,
            EXIT_USAGE: "wrong usage, or a package is not installed",
            EXIT_FAILED: "a file cannot be read, used or written; stderr says why",
        }
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in meanings.items() if text])


class Group(click.Group):
    """All commands; an error of the library becomes its sentence on stderr and an exit code."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modules: dict[str, str] = {}  # which define the commands: most of them import torch

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command; its file is imported."""
        if name in self.modules:
            import_module(self.modules[name])
        return super().get_command(ctx, name)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write an example of each command."""
        commands = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        _write_examples(
            formatter, [one.examples[0] for one in commands if isinstance(one, Command)]
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except FitkitError as error:
            is_usage = isinstance(error, ConfigurationError)
            raise CommandFailed(str(error), EXIT_USAGE if is_usage else EXIT_FAILED) from error
        except OSError as error:  # a folder that cannot be listed
            if isinstance(error, BrokenPipeError):
                raise
            where = "" if error.filename is None else f"{str(error.filename)!r}: "
            raise CommandFailed(f"{where}{error.strerror or error}.") from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


class CommandFailed(click.ClickException):
    """A failure that is reported as one sentence on stderr."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(printable(message))
        vars(self)["exit_code"] = exit_code  # click declares it on the class


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}fitkit {example}\n")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fitkit")
def main() -> None:
    """Inspect checkpoints and runs of fitkit, and manage their files.

    Nothing in a file is executed. Every command has its own --help.
    """
