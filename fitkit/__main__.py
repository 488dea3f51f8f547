"""``python -m fitkit``: the command line."""

from fitkit.cli.main import run

if __name__ == "__main__":
    run()
