"""The command ``fitkit``, which is also ``python -m fitkit``."""

import sys

from fitkit.core.errors import missing_package

try:
    from fitkit.cli.main import run
except ModuleNotFoundError as error:
    if error.name != "click":  # the extra `cli`: all else works without it
        raise

    def run() -> None:
        """Exit with the code for a missing package, as ``fitkit.cli.group.USAGE``."""
        sys.stderr.write(f"{missing_package('The command fitkit', 'click')}\n")
        sys.exit(2)


if __name__ == "__main__":
    run()
