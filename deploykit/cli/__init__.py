"""The command line: one file a command. Each parses, calls a job, and renders its result."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from deploykit.cli.app import run

    sys.exit(run(sys.argv[1:]))
