"""Results as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


def rate_digits(rate: float) -> str:
    """A rate in percent that must not look like none: ``1.3``, and ``0.03`` where it is small."""
    return f"{100 * rate:.1f}" if rate >= 0.01 or rate == 0 else f"{100 * rate:.2g}"


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without colours, as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.ASCII2, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=10_000, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 photo``, ``225 photos``.

    Args:
        count: How many.
        one: What one of them is called.
        many: What several are; None for the same with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
