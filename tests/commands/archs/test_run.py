"""The names of the architectures, without the libraries that have them."""

import importlib.util
import subprocess
import sys

import pytest

from deploykit.commands.archs import run
from deploykit.models.registry import list_architectures

LOADED = """
import sys
from deploykit.commands.app import run
run(["archs", "dpn92"])
print(sorted({"torch", "torchvision", "timm"} & sys.modules.keys()))
"""


def test_architecture_names_are_the_libraries_own():
    assert run.architecture_names() == list_architectures()


def test_archs_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "dpn92\ntimm/dpn92\n[]\n"


def test_architecture_names_without_sources(monkeypatch):
    monkeypatch.setattr(run, "_registered", lambda *given: set())
    assert run.architecture_names() == list_architectures()


@pytest.mark.parametrize("missing", [("timm",), ("timm", "torchvision")])
def test_architecture_names_without_libraries(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    names = run.architecture_names()
    assert names["zoo"] == [
        *("densenet", "dpn92", "dpn98", "resnet_cifar96"),
        *("resnext50_keras", "resnext50_keras_grouped"),
    ]
    assert not names.keys() & {*missing}


SOURCE = '''
@register_model()
@handle_legacy_interface(
    weights=("pretrained", lambda kwargs: Weights.V1),
)
def one(*, progress: bool = True) -> Net:
    """"""


@register_model(name="called_two")
def two(): ...


@register_model
@torch.jit.ignore
def three(): ...


@register_model("called_four", extra=(1, 2))
def four(): ...


# @register_model
def helper(): ...
'''


def test_architecture_names_of_all_spellings(monkeypatch, tmp_path):
    package = tmp_path / "timm"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "nets.py").write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(
        "timm", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "timm" else found(name)
    )
    names = run.architecture_names()["timm"]
    assert names == ["timm/called_four", "timm/called_two", "timm/one", "timm/three"]
