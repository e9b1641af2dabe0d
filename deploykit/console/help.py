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
        """Write the arguments and the groups of options."""
        for title, records in self.grouped_records(ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)

    def grouped_records(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Title of each group, in the order of its first member, with (option, help) of each."""
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
        return {title: records for title, records in groups.items() if records}
