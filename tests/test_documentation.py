"""The commands in the documentation are commands that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import deploykit
from deploykit.commands.app import app

ROOT = Path(deploykit.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    pytest.param(line.strip(), id=f"{page.name}: {line.strip()}")
    for page in PAGES
    if page.exists()
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("deploykit ")
]


@pytest.mark.skipif(not COMMANDS, reason="not run from a checkout")
def test_the_documentation_has_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_parses(line):
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    command = group.get_command(group.make_context("deploykit", [name]), name)
    command.make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
