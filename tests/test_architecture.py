"""The layers, which command uses which, and what a file of a command may import: tables, enforced.

See "Where is what" in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import deploykit

PACKAGE = Path(deploykit.__file__).parent

#: From the lowest to the highest. A folder imports only from lower layers and from itself.
LAYERS = (
    {"errors"},
    {"system"},
    {"specs"},
    {"parity"},
    {"bundle"},
    {"models", "images", "graph", "engine", "runtime"},
    {"html", "inference"},
    {"proof", "console"},
    {"commands"},
    {"__init__", "__main__"},
)
#: Which other commands a command uses.
COMMANDS = {
    "bench": {"verify"},
    "build": {"diagnose", "quantize", "verify"},
    "collect": {"predict"},
    "export": {"diagnose"},
    "inspect": {"quantize"},
    "quantize": {"diagnose"},
    "serve": {"predict"},
    "verify": {"diagnose", "export"},
}
#: What the Python functions of all commands share; it is no command.
SHARED = "deploykit.commands.python"
#: Heavy packages that a folder must never load.
FORBIDDEN = {
    "images": {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime"},
    "parity": {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime"},
}
#: What only the file ``cli.py`` of a command may import.
CONSOLE = ("typer", "rich", "deploykit.console")

FILES = sorted(PACKAGE.rglob("*.py"))
COMMAND_FILES = [
    path
    for path in FILES
    if len(path.relative_to(PACKAGE).parts) > 2 and path.relative_to(PACKAGE).parts[0] == "commands"
]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
    """``deploykit/bundle/__init__.py`` => ``deploykit.bundle``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & MODULES) or {node.module}
    return found


def layer_of(part: str) -> int:
    (level,) = (level for level, parts in enumerate(LAYERS) if part in parts)
    return level


def parts_of(module: str) -> list[str]:
    """``deploykit.graph.passes`` => ``["graph", "passes"]``."""
    return module.split(".")[1:] or ["__init__"]


def test_layers_cover_every_folder():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers_import_only_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        if module.partition(".")[0] != "deploykit":
            continue
        imported = parts_of(module)[0]
        if imported in (part, "__init__"):  # the version stands in __init__.py
            continue
        assert layer_of(imported) < layer_of(part), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers_of_heavy_packages(path):
    part = path.relative_to(PACKAGE).parts[0]
    heavy = {module.partition(".")[0] for module in imports_of(path)}
    assert not heavy & FORBIDDEN.get(part, set())


def test_command_uses_only_listed_commands():
    used: dict[str, set[str]] = {}
    for path in COMMAND_FILES:
        command = path.relative_to(PACKAGE).parts[1]
        for module in imports_of(path):
            if module == SHARED or not module.startswith("deploykit.commands."):
                continue
            if parts_of(module)[1] != command:
                used.setdefault(command, set()).add(parts_of(module)[1])
    assert used == COMMANDS


@pytest.mark.parametrize("path", COMMAND_FILES, ids=name_of)
def test_command_files_import_only_their_layer(path):
    imported = imports_of(path)
    if path.name != "cli.py":
        assert not [module for module in imported if module.startswith(CONSOLE)]
        assert not [module for module in imported if module.endswith(".cli")]
    if path.name == "run.py":
        shown = [module for module in imported if module.startswith("deploykit.commands.")]
        assert not [module for module in shown if module.endswith((".text", ".page", ".api"))]


def test_commands_without_cycles():
    assert [*TopologicalSorter(COMMANDS).static_order()]  # raises CycleError, which names it


def test_modules_without_cycles():
    # Raises CycleError, which names the circle.
    order = TopologicalSorter(
        {module_of(path): (imports_of(path) & MODULES) - {"deploykit"} for path in FILES}
    ).static_order()
    assert {*order} == MODULES


def test_public_names():
    assert deploykit.__all__ == sorted(deploykit.__all__, key=lambda name: (name.islower(), name))
    for name in deploykit.__all__:
        assert getattr(deploykit, name).__name__ == name
        assert getattr(deploykit, name).__module__ == deploykit._HOMES[name]
        assert not (PACKAGE / name).exists()
        assert not (PACKAGE / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = deploykit.no_such_name
