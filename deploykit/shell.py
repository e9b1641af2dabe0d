"""Command lines to show: what a person would type into this system's shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def command_line(words: Sequence[str]) -> str:
    """Write a command's words in a line, quoted where this system's shell needs it.

    On Windows as its programs split their command line: cmd.exe takes single quotes for a part of
    the word.
    """
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)
