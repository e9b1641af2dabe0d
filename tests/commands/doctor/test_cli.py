"""``deploykit doctor`` from outside."""

import json
import subprocess
import sys

import pytest

from deploykit.commands.app import run
from deploykit.commands.doctor import hardware as _doctor_hardware
from deploykit.errors import DeviceError
from deploykit.system.gpu import Gpu

RUNTIMES = (
    *("onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt_rtx"),
    *("torch", "rehearsal"),
)


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise DeviceError("There is no NVIDIA driver.") from OSError()

    monkeypatch.setattr(_doctor_hardware, "need_gpu", refuse)


def test_a_machine_without_a_gpu_is_fine(no_gpu, capsys):
    assert run(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "gpu     none that can be used" in out
    for runtime in RUNTIMES:
        assert f"\n{runtime} " in out
    cuda = next(line for line in out.splitlines() if line.startswith("onnxruntime-cuda"))
    assert "cannot" in cuda
    assert "for want of: NVIDIA GPU" in cuda
    gpu = next(line for line in out.splitlines() if line.startswith("NVIDIA GPU"))
    assert "absent-but-fine | There is no NVIDIA driver." in gpu
    assert "nvidia.com" in gpu
    assert out.isascii()


def test_a_gpu_is_told_with_its_target(monkeypatch, capsys):
    gpu = Gpu(name="NVIDIA GeForce RTX 4070", compute_capability=(8, 9), cuda_version=(13, 0))
    monkeypatch.setattr(_doctor_hardware, "need_gpu", lambda: gpu)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "RTX 4070, compute capability 8.9 (--target sm89), memory not known" in out
    assert "driver  version not known, CUDA up to 13.0" in out


def test_several_commands_stand_below_each_other(no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(
        "deploykit.commands.doctor.packages.onnx_runtime_packages",
        lambda: ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    )
    monkeypatch.setattr("deploykit.commands.doctor.packages.has_gpu_package", lambda: True)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("onnxruntime package"))
    assert lines[first].endswith("| pip uninstall -y onnxruntime onnxruntime-directml")
    assert lines[first + 1].endswith("| pip install --force-reinstall --no-deps onnxruntime-gpu")


def test_json(no_gpu, capsys):
    assert run(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["exit_code"]) == ("doctor", 0)
    result = answer["result"]
    assert set(result) == {"machine", "abilities", "findings"}
    assert result["machine"]["gpu"] is None
    abilities = {(each["runtime"], each["task"]): each for each in result["abilities"]}
    assert {runtime for runtime, _ in abilities} == set(RUNTIMES)
    assert abilities["onnxruntime-cpu", "run"]["works"] is True
    cuda = abilities["onnxruntime-cuda", "run"]
    assert cuda["works"] is False
    assert cuda["obstacles"][0]["name"] == "NVIDIA GPU"
    assert cuda["obstacles"][0]["remedies"]
    assert {"name", "status", "detail", "remedies"} == set(result["findings"][0])


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from deploykit.commands.app import run; assert run(['doctor']) == 0;"
        "heavy = ('torch', 'torchvision', 'onnx', 'onnx_ir', 'tensorrt', 'tensorrt_rtx');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
