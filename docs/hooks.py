"""Pages of the site that are made: start and figures, of README.md; each command; the errors.

mkdocs calls the ``on_...`` functions; nothing that they make is kept in the repository.
"""

from __future__ import annotations

import html
import inspect
import re
from pathlib import Path
from typing import Any

import typer

from deploykit import errors
from deploykit.commands.app import COMMANDS, app

ROOT = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """Path of each page below ``docs/``, and its Markdown."""
    commands = {f"reference/{name}.md": command_page(name) for name in COMMANDS}
    return {
        "index.md": root_page("README.md"),
        "reference/index.md": index_page(),
        **commands,
        "reference/errors.md": errors_page(),
        "benchmarks.md": root_page("benchmarks/README.md"),
        "contributing.md": root_page("CONTRIBUTING.md"),
        "changelog.md": root_page("CHANGELOG.md"),
    }


def root_page(name: str) -> str:
    """A page from outside of ``docs/``, as one of the site: what it links to lies beside it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](CONTRIBUTING.md)", "](contributing.md)")
    text = text.replace("](CHANGELOG.md)", "](changelog.md)")
    text = text.replace("](benchmarks/README.md", "](benchmarks.md")
    text = re.sub(r'(\]\(|srcset="|src=")(?:\.\./)?docs/', r"\1", text)
    return re.sub(r"<picture><source [^>]*><img (.*?)></picture>", _of_both_schemes, text)


def index_page() -> str:
    """All commands, a sentence each."""
    rows = [f"| [{name}]({name}.md) | {entry.summary} |" for name, entry in COMMANDS.items()]
    return "\n".join(["# Commands", "", "| command | what it does |", "|---|---|", *rows, ""])


def command_page(name: str) -> str:
    """What a command does, its example, and its options in the groups of ``--help``."""
    group: Any = typer.main.get_command(app)
    root = group.make_context("deploykit", [name])
    command = group.get_command(root, name)
    context = command.context_class(command, info_name=name, parent=root)
    about = inspect.cleandoc(command.help or "")
    lines = [f"# {name}", "", _escaped(about), "", "```", COMMANDS[name].example, "```", ""]
    lines += ['<div class="options" markdown>']
    for title, records in command.grouped_records(context).items():
        columns = "argument" if title == "Arguments" else "option"
        lines += ["", f"## {title}", "", f"| {columns} | what it does |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_cell(_escaped(text))} |" for option, text in records]
    usage = " ".join(command.collect_usage_pieces(context))
    lines[4:4] = [f"`deploykit {name} {usage}`", ""]
    return "\n".join([*lines, "", "</div>", ""])


def errors_page() -> str:
    """The tree of the errors, and each with what it means and its exit code."""
    tree = inspect.cleandoc(errors.__doc__ or "")
    # The docstring's indented block becomes a fenced one.
    tree = re.sub(r"::\n\n((?: {4}.*\n)+)", lambda block: _fenced(block[1]), tree)
    columns = ["| error | exit code | what it means |", "|---|---|---|"]
    lines = ["# Errors and exit codes", "", tree, "", *columns]
    for error in _family(errors.DeploykitError):
        text = " ".join(inspect.cleandoc(error.__doc__ or "").partition("\n\n")[0].split())
        lines.append(f"| `{error.__name__}` | {error.exit_code} | {text} |")
    return "\n".join([*lines, ""])


def on_config(config: Any) -> Any:
    """Give each command its place in the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    commands = next(entry["Commands"] for entry in reference if "Commands" in entry)
    commands += [{name: f"reference/{name}.md"} for name in COMMANDS]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, files: Any, **_: Any) -> str:
    """Name linked pages by their titles, and take away what only GitHub wants.

    That is the backslash before a | within code in a table. The figures lie beside ``docs/`` in the
    repository, and among its pages on the site.
    """
    markdown = markdown.replace("](../benchmarks/README.md)", "](benchmarks.md)")

    def titled(link: re.Match[str]) -> str:
        file = files.get_file_from_path(link[1])
        title = file and file.page and file.page.title
        return f"[{title}]({link[1]}{link[2]})" if title else link[0]

    markdown = re.sub(r"\[[\w/-]+\.md\]\(([\w/-]+\.md)(#[\w-]+|)\)", titled, markdown)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Keep a number and its % on one line, but in code, which is copied."""
    parts = re.split(r"(<(pre|code)\b.*?</\2>)", content, flags=re.S)
    parts[::3] = [re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text) for text in parts[::3]]
    del parts[2::3]  # the names of the tags
    return "".join(parts)


def _of_both_schemes(picture: re.Match[str]) -> str:
    """A picture for each scheme, of which the site shows that of its own switch."""
    light = picture[1].replace('-light.png"', '-light.png#only-light"')
    dark = picture[1].replace('-light.png"', '-dark.png#only-dark"')
    return f"<img {light}><img {dark}>"


def _family(error: type[errors.DeploykitError]) -> list[type[errors.DeploykitError]]:
    below = [e for child in error.__subclasses__() for e in _family(child)]
    return [error, *(e for e in below if e.__module__ == errors.__name__)]


def _fenced(block: str) -> str:
    return "```\n" + re.sub(r"^ {4}", "", block, flags=re.M) + "```\n"


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", html.escape(text, quote=False))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
