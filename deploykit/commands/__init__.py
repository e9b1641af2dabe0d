"""The commands, a folder each: `run.py` does it, `cli.py` parses, `text.py` words the result."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from deploykit.commands.app import run
    from deploykit.console.streams import open_standard_streams

    open_standard_streams()
    sys.exit(run(sys.argv[1:]))
