"""The layers are a table; this enforces it. See "Layers" in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

import deploykit

PACKAGE = Path(deploykit.__file__).parent

#: The layer of each top-level file and folder. A file imports only from lower layers and from its
#: own folder; folders of L2 never import each other.
LAYERS = {
    "errors": 0,
    "closing": 0,
    "cpu": 0,
    "deps": 0,
    "files": 0,
    "gpu": 0,
    "shell": 0,
    "threads": 0,
    "statistics": 1,
    "specs": 1,
    "accepted": 1,
    "measurements": 1,
    "tolerances": 1,
    "proofs": 1,
    "session": 1,
    "progress": 1,
    "stages": 1,
    "manifest": 1,
    "bundle": 1,
    "models": 2,
    "images": 2,
    "graph": 2,
    "engine": 2,
    "runtime": 2,
    "parity": 2,
    "jobs": 3,
    "report": 4,
    "cli": 5,
    "suite": 5,
    "__init__": 6,
    "__main__": 6,
}
#: Which files of L0 and L1 may import which others of their layer.
WITHIN_LAYER = {
    "deps": {"errors"},
    "gpu": {"errors"},
    "measurements": {"specs"},
    "tolerances": {"specs", "measurements"},
    "proofs": {"specs", "statistics", "measurements", "tolerances"},
    "session": {"specs"},
    "accepted": {"specs"},
    "manifest": {"accepted", "specs", "proofs"},
    "bundle": {"specs", "manifest"},
}
#: Folders of L2 that say what they may not import: the heavy packages of the others.
FORBIDDEN = {
    "images": {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime"},
    "parity": {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxruntime"},
}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    """``deploykit.graph.passes`` => ``graph``."""
    return module.split(".")[1]


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_file_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        if not module.startswith("deploykit.") or part_of(module) not in LAYERS:
            continue
        imported = part_of(module)
        if imported == part or LAYERS[imported] < LAYERS[part]:
            continue
        assert imported in WITHIN_LAYER.get(part, set()), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_packages_stay_in_their_layer(path):
    part = path.relative_to(PACKAGE).parts[0]
    heavy = {module.partition(".")[0] for module in imports_of(path)}
    assert not heavy & FORBIDDEN.get(part, set())


def test_imports_within_jobs_are_acyclic():
    graph = {
        f"deploykit.jobs.{path.stem}": {
            module for module in imports_of(path) if module.startswith("deploykit.jobs.")
        }
        for path in FILES
        if path.parent.name == "jobs"
    }
    settled: set[str] = set()
    while graph:
        free = {name for name, needs in graph.items() if not (needs & graph.keys()) - {name}}
        assert free, f"these import each other: {sorted(graph)}"
        settled |= free
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert settled


def test_the_public_names():
    assert deploykit.__all__ == sorted(deploykit.__all__, key=lambda name: (name.islower(), name))
    for name in deploykit.__all__:
        assert getattr(deploykit, name).__name__ == name
        assert not (PACKAGE / name).exists()
        assert not (PACKAGE / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = deploykit.no_such_name
