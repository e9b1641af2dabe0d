import importlib
import sys

import pytest

from deploykit.errors import DependencyError
from deploykit.system import deps
from deploykit.system.deps import EXTRAS, REQUIREMENTS, need


def test_need_imports_a_module():
    assert need("json.decoder").__name__ == "json.decoder"


@pytest.mark.parametrize(("name", "extra"), sorted(EXTRAS.items()))
def test_need_names_the_extra_of_a_missing_module(monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=f"{name} is not installed") as caught:
        need(name)
    assert f'pip install "deploykit[{extra}]"' in caught.value.hint
    assert isinstance(caught.value.__cause__, ImportError)
    assert caught.value.exit_code == 5


def test_need_of_a_broken_module(tmp_path, monkeypatch):
    (tmp_path / "half_broken.py").write_text("import no_such_library_of_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DependencyError, match="does not import: No module named 'no_such"
    ) as caught:
        need("half_broken")
    assert 'pip install "half_broken"' in caught.value.hint


def test_need_of_a_package_in_several_extras(monkeypatch):
    """Not TensorRT for RTX on top of TensorRT."""
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(DependencyError, match="cuda is not installed") as caught:
        need("cuda")
    assert caught.value.hint == 'Install it: pip install "cuda-bindings>=12.9.1"'


def test_extras_and_requirements_exist():
    import tomllib
    from pathlib import Path

    import deploykit

    pyproject = Path(deploykit.__file__).parents[1] / "pyproject.toml"
    if not pyproject.exists():
        pytest.skip("not run from a checkout")
    extras = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert set(EXTRAS.values()) <= set(extras)
    assert set(REQUIREMENTS.values()) <= {each for needed in extras.values() for each in needed}


@pytest.mark.parametrize("already_imported", [False, True])
def test_need_hides_reporters_of_imports(tmp_path, monkeypatch, already_imported):
    (tmp_path / "some_reporter.py").write_text("")
    (tmp_path / "reported.py").write_text(
        "try:\n    import some_reporter\n"
        "except ImportError:\n    told = False\nelse:\n    told = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(deps.REPORTERS, "reported", "some_reporter")
    for name in ("reported", "some_reporter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if already_imported:
        importlib.import_module("some_reporter")
    assert not need("reported").told
    assert importlib.import_module("some_reporter").__name__ == "some_reporter"
