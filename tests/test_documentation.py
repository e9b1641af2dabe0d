"""The commands in the documentation are commands that exist."""

import re
import shlex
import shutil
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
def test_documentation_has_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("line", COMMANDS)
def test_documentation_commands_parse(line):
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    command = group.get_command(group.make_context("deploykit", [name]), name)
    command.make_context(name, arguments)


@pytest.mark.parametrize(
    # test_frameworks.py runs the programs of that page, each in a process of its own.
    "page",
    [page for page in PAGES if page.name != "frameworks.md"],
    ids=lambda page: page.name,
)
def test_documentation_python_examples_run(page, user_folder, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    if page.name in ("README.md", "python.md"):
        assert blocks
    monkeypatch.chdir(user_folder)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


@pytest.fixture
def user_folder(tmp_path, photo_folder, checkpoint, network_file, exported_bundle):
    """What the examples name: photos, one image, a checkpoint with its code, and a bundle."""
    shutil.copytree(photo_folder, tmp_path / "bird_photos")
    shutil.copy(photo_folder / "red" / "00.png", tmp_path / "robin.jpg")
    shutil.copy(checkpoint, tmp_path / "best_model.pth")
    code = network_file.read_text(encoding="utf-8").replace("class Net(", "class BirdNet(")
    (tmp_path / "train_birds.py").write_text(code.replace("(Net)", "(BirdNet)"), encoding="utf-8")
    shutil.copytree(exported_bundle.folder, tmp_path / "artifacts" / "dpn92")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documentation_links_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
