"""The group that all verbs belong to: help with examples, exit codes, errors as one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fitkit.core.errors import ConfigurationError, FitkitError
from fitkit.version import __version__

NO, USAGE, IMPOSSIBLE, INTERRUPTED = 1, 2, 3, 130


class Verb(click.Command):
    """A verb whose help ends with examples and with what its exit codes mean.

    Args:
        *args: as ``click.Command``.
        examples: command lines, without the name of the program.
        no: what exit code 1 means; ``""``: the verb does not give it.
        **kwargs: as ``click.Command``.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), no: str = "", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.no = no

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples and exit codes."""
        write_examples(formatter, self.examples)
        codes = [
            ("0", "fine"),
            (str(USAGE), "wrong usage, or a package that is not installed"),
        ]
        codes += [(str(NO), self.no)] if self.no else []
        codes += [(str(IMPOSSIBLE), "a file cannot be read, used or written; stderr says why")]
        with formatter.section("Exit codes"):
            formatter.write_dl(sorted(codes))


class Group(click.Group):
    """The verbs together; whatever the library raises becomes its sentence and an exit code."""

    command_class = Verb

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write an example of each verb."""
        verbs = [self.commands[name] for name in self.list_commands(ctx)]
        write_examples(formatter, [verb.examples[0] for verb in verbs if isinstance(verb, Verb)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except FitkitError as error:
            raise Failure(str(error), isinstance(error, ConfigurationError)) from error
        except OSError as error:  # a folder that cannot be listed
            if isinstance(error, BrokenPipeError):
                raise
            where = "" if error.filename is None else f"{str(error.filename)!r}: "
            raise Failure(f"{where}{error.strerror or error}.") from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


class Failure(click.ClickException):
    """What cannot be done, told on stderr.

    Args:
        message: the sentence.
        is_usage: whether the command line is what is wrong.
    """

    def __init__(self, message: str, is_usage: bool = False) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = USAGE if is_usage else IMPOSSIBLE  # click has it on the class


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write a section of command lines, each on a line of its own."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}fitkit {example}\n")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fitkit")
def main() -> None:
    """Look at checkpoints and runs of fitkit, and handle their files.

    Nothing that a file holds is executed. Every verb has its own --help.
    """
