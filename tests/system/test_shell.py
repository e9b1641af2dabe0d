import shlex
from types import SimpleNamespace

import pytest

from deploykit.system.text import command_line


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
