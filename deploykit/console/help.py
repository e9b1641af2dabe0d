"""How a command's ``--help`` looks: its options in groups.

Typer draws groups only in boxes of rich, which imports slowly and which not every console can show;
so they are drawn here, as plain text.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

#: The group of the options that every command has.
GENERAL = "General options"


class GroupedCommand(TyperCommand):
    """A command whose help shows its options in the groups that ``rich_help_panel`` names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the groups of options, in the order of their first member."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            group = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                group = "Arguments"
            elif parameter.name == "help":
                group = GENERAL
            groups.setdefault(group, []).append(record)
        groups[GENERAL] = groups.pop(GENERAL, [])  # the last one
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
