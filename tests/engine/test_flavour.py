import sys

import pytest

from deploykit.engine.flavour import installed_flavours, open_flavour
from deploykit.errors import DependencyError


@pytest.fixture
def forget():
    """Ask anew for flavours that a test changes."""
    yield
    open_flavour.cache_clear()


def test_open_flavour_once(rtx):
    assert open_flavour("tensorrt_rtx") is rtx
    assert rtx.version.count(".") == 3
    assert "tensorrt_rtx" in installed_flavours()


def test_installed_flavours_imports_nothing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    installed_flavours()
    assert not [name for name in sys.modules if name.startswith("tensorrt")]


@pytest.mark.parametrize(("flavour", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")])
def test_open_flavour_missing_names_its_extra(flavour, extra, monkeypatch, forget):
    open_flavour.cache_clear()
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(DependencyError, match=flavour) as caught:
        open_flavour(flavour)
    assert caught.value.hint == f'Install it: pip install "deploykit[{extra}]"'


def test_open_flavour_of_a_plain_folder(tmp_path, monkeypatch, forget):
    """Python imports any folder without ``__init__.py`` that has the right name."""
    if "tensorrt" in installed_flavours():
        pytest.skip("a real package goes before a folder")
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt" not in installed_flavours()
    with pytest.raises(DependencyError, match="not NVIDIA's"):
        open_flavour("tensorrt")
    sys.modules.pop("tensorrt")


def test_log_capture_of_warnings_and_errors(rtx, capfd):
    severity = rtx.trt.ILogger.Severity
    rtx.log.log(severity.ERROR, "before")
    with rtx.log.capture() as outer:
        rtx.log.log(severity.WARNING, "one\n")
        with rtx.log.capture() as inner:
            rtx.log.log(severity.ERROR, "two")
        rtx.log.log(severity.INTERNAL_ERROR, "three")
        rtx.log.log(severity.INFO, "chatter")
    rtx.log.log(severity.ERROR, "after")
    assert list(outer) == ["one", "two", "three"]
    assert list(inner) == ["two"]
    assert capfd.readouterr() == ("", "")


def test_log_capture_is_bounded(rtx):
    with rtx.log.capture() as lines:
        for number in range(1000):
            rtx.log.log(rtx.trt.ILogger.Severity.ERROR, str(number))
    assert len(lines) < 100
    assert lines[-1] == "999"


def test_log_capture_skips_driver_echo(rtx):
    echo = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35: ...)"
    with rtx.log.capture() as lines:
        rtx.log.log(rtx.trt.ILogger.Severity.ERROR, echo)
        rtx.log.log(rtx.trt.ILogger.Severity.ERROR, "Error Code 1: Cuda Runtime (cudaError 2)")
    assert list(lines) == ["Error Code 1: Cuda Runtime (cudaError 2)"]
