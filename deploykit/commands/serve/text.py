"""The words of ``deploykit serve``."""

from __future__ import annotations

from typing import Any

from deploykit.commands.serve.process import ServeSummary
from deploykit.system.text import counted


def started_text(url: str) -> str:
    """What is said once requests are answered."""
    return f"listening on {url} (its pages: {url}/ and {url}/docs); Ctrl+C ends it"


def summary_text(summary: ServeSummary) -> str:
    """What a server did until it ended."""
    lost = f"; {summary.unanswered} had no answer" if summary.unanswered else ""
    return f"ended: {counted(summary.answered, 'request')} with images answered{lost}"


def summary_value(summary: ServeSummary) -> dict[str, Any]:
    """The same as JSON."""
    return {"answered": summary.answered, "unanswered": summary.unanswered}
