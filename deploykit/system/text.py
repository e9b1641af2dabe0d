"""Results and commands as text for a terminal."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from unicodedata import category

#: Between a number and its unit.
NARROW_SPACE = "\u202f"


def bound(rate: float) -> str:
    """A rate in percent that must not look like none, see :func:`rate_digits`."""
    return f"{rate_digits(rate)}{NARROW_SPACE}%"


def rate_digits(rate: float) -> str:
    """A rate in percent that must not look like none: ``1.3``, and ``0.03`` where it is small."""
    return f"{100 * rate:.1f}" if rate >= 0.01 or rate == 0 else f"{100 * rate:.2g}"


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without colours, as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.ASCII2, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(visible, row))
    stream = io.StringIO()
    Console(file=stream, width=10_000, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 photo``, ``225 photos``.

    Args:
        count: How many.
        one: What one of them is called.
        many: What several are; None for the same with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def joined(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


#: Unicode's categories of what controls a terminal or the direction of text, ends a line, or is
#: half a character.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Of these the joiners, without which some scripts and emoji cannot be written.
_JOINERS = "\u200c\u200d"


#: Of these what no name of one line has: the others turn the direction of text, or join emoji.
_CONTROL = _UNSEEN - {"Cf"}


def has_control_character(text: str) -> bool:
    """Whether a text has a control character, an end of a line, or half a character."""
    # Python calls none of these printable, and looks faster.
    return not text.isprintable() and any(category(each) in _CONTROL for each in text)


def visible(text: str, *, lines: bool = False) -> str:
    r"""A text of which nothing controls a terminal: ``\x1b`` stands for an escape character.

    Names and labels are whatever their author wrote: a colour, a title of the window, a line that
    looks like ours, text that runs backwards.

    Args:
        text: Any text; bytes of a file's name that are not Unicode are shown as ``\xff``.
        lines: Whether ends of lines and tabs stay.
    """
    kept = f"{_JOINERS}\n\t" if lines else _JOINERS
    escaped = {
        ord(each): f"\\x{ord(each) & 0xFF:02x}"  # how Python holds a byte that is not Unicode
        if "\udc80" <= each <= "\udcff"
        else each.encode("unicode_escape").decode("ascii")
        for each in set(text)
        if category(each) in _UNSEEN and each not in kept
    }
    return text.translate(escaped)


def lines_text(lines: Iterable[str]) -> str:
    """Lines, of which none can look like two: each is made :func:`visible`."""
    return "\n".join(map(visible, lines))


#: Plain words, a colon, and a command up to the end of the line. In quotes or in a path, what looks
#: like a command may be anybody's.
_COMMAND_AT_END = re.compile(
    r"^((?:[\w ,.;()-]|(?<=\w)'(?=\w))+:) ((?:deploykit [a-z]|pip install ).*)$",
    re.MULTILINE | re.ASCII,
)


def commands_apart(text: str) -> str:
    """Put a command at the end of a line on a line of its own, where it can be copied."""
    return _COMMAND_AT_END.sub(r"\1\n\2", text)


#: What cmd.exe and PowerShell both leave alone without quotes. A number's ``%`` names no variable.
_PLAIN_ON_WINDOWS = re.compile(r"[\w.:=+/\\-]+|[0-9.]+%")
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
