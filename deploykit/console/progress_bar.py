"""The bar that shows how far a command has come: made only where someone watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """How fast a stage goes that counts something: ``34.6 images/s``."""

    def render(self, task: Task) -> Text:
        """The rate of the last half minute; nothing while it is not known."""
        if not task.fields["unit"] or not task.speed:
            return Text()
        return Text(f"{task.speed:,.1f} {task.fields['unit']}/s")


def progress_bar() -> Progress:
    """A bar on stderr for one task at a time, as wide as the terminal; it leaves no trace.

    Its tasks have a field ``unit``: what is counted, or nothing.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, highlight=False, emoji=False),
        transient=True,
        expand=True,
    )
