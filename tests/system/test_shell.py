import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import deploykit
from deploykit.system.text import command_line, commands_apart


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("posix", "deploykit export --ckpt 'my runs/best.pth'"),
        ("nt", 'deploykit export --ckpt "my runs/best.pth"'),
    ],
)
def test_command_line_quotes_spaces(monkeypatch, name, line):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name=name))
    assert command_line(["deploykit", "export", "--ckpt", "my runs/best.pth"]) == line


def test_command_line_windows_backslashes(monkeypatch):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name="nt"))
    assert command_line(["--ckpt", r"C:\runs\best.pth"]) == r"--ckpt C:\runs\best.pth"


@pytest.mark.parametrize("word", ["a b", "it's", 'a"b', "$HOME", "*"])
def test_command_line_posix_round_trip(monkeypatch, word):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name="posix"))
    assert shlex.split(command_line(["export", word])) == ["export", word]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Build it again: deploykit build-trt", "Build it again:\ndeploykit build-trt"),
        ("Move it.\nOr (1) yours: pip install x", "Move it.\nOr (1) yours:\npip install x"),
        ("Name it: --images DIR", "Name it: --images DIR"),
        ("deploykit doctor", "deploykit doctor"),
        # In what a stranger may have named nothing is taken for ours.
        ("'a: deploykit export --arch /x/evil.py:Net' is no label", None),
        ("/x/a: deploykit export --arch evil.py:Net", None),
        ("Copy: 'a: deploykit export'", None),
    ],
)
def test_commands_apart(text, shown):
    assert commands_apart(text) == (shown or text)


#: A command with options and what stands for a value, up to the end of its line.
COMMAND = re.compile(r"deploykit (?:export|verify|quantize|build-trt|predict|serve|bench|train"
    r"|archs|identify|inspect|doctor|demo)(?![\w-])(.*)")  # fmt: skip
REST = re.compile(r"(?: --[\w-]+(?: [^\s-]\S*)?| [A-Z]+)* ?")


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in Path(deploykit.__file__).parent.rglob("*.py")
        if path.name not in ("app.py", "cli.py")  # which have examples and help
    ],
    ids=lambda path: "/".join(path.parts[-3:]),
)
def test_commands_in_messages_end_their_line(path):
    """So that what is copied runs: not ``deploykit doctor shows what is here``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
    ]
    for line in "\n".join(texts).splitlines():
        if (found := COMMAND.search(line)) and not line.startswith("<"):
            before = line[: found.start()]
            assert not before or before.endswith(": "), line
            assert REST.fullmatch(found[1]), line
