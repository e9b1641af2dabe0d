"""The command line: one file a command. Each parses, calls a job, and renders its result."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from deploykit.commands.app import run
    from deploykit.console.streams import open_standard_streams

    open_standard_streams()
    sys.exit(run(sys.argv[1:]))
