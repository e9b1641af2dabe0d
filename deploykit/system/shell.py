"""Command lines to show: what a person would type into this system's shell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from unicodedata import category

#: Unicode's categories of what controls a terminal or the direction of text, ends a line, or is
#: half a character.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: What cmd.exe and PowerShell both leave alone without quotes.
_PLAIN_ON_WINDOWS = re.compile(r"[\w.:=+/\\-]+")
#: What no quotes make plain for both: cmd.exe expands ``%``, PowerShell the next two, and ends a
#: word at curly double quotes as well.
_SPECIAL_ON_WINDOWS = re.compile('[%$`"\u201c\u201d\u201e]')


def command_line(words: Sequence[str]) -> str:
    """Write a command's words in a line, quoted where this system's shell needs it.

    Words may come from a bundle that somebody else made: copied into the shell, none does more than
    name something. What cannot be written so, a control character and on Windows a few others,
    is shown as ``?``.
    """
    printable = ["".join("?" if category(c) in _UNSEEN else c for c in word) for word in words]
    if os.name == "nt":
        return " ".join(map(_for_windows, printable))
    return shlex.join(printable)


def _for_windows(word: str) -> str:
    if _PLAIN_ON_WINDOWS.fullmatch(word):
        return word
    plain = _SPECIAL_ON_WINDOWS.sub("?", word)
    trailing = len(plain) - len(plain.rstrip("\\"))  # which would escape the quote
    return f'"{plain}{trailing * chr(92)}"'
