"""The command ``fitkit``, which is also ``python -m fitkit``."""

import sys

from fitkit.core.errors import missing_package

try:
    from fitkit.cli.all_commands import run
except ModuleNotFoundError as error:
    if error.name != "click":  # click comes with the extra `cli`
        raise

    def run() -> None:
        """Exit with the code for a missing package, ``EXIT_USAGE`` of ``fitkit.cli``."""
        sys.stderr.write(f"{missing_package('The command fitkit', 'click')}\n")
        sys.exit(2)


if __name__ == "__main__":
    run()
