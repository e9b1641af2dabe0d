"""What doctor says of runtimes that work, crash, hang, or compute elsewhere.

The processes are real; the packages in them are made (``made_machines.py``), but for three tests.
"""

import os
import platform
import sys
from types import SimpleNamespace

import pytest
from made_machines import ONNX_RUNTIME, TENSORRT, TORCH, MadeMachine

from deploykit.commands.doctor import run
from deploykit.commands.doctor.text import examination_text

KEEP_ONE = "pip install --force-reinstall --no-deps onnxruntime-gpu"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return MadeMachine(tmp_path / "site", monkeypatch)


def test_doctor_everything_works(machine, rtx_4070):
    findings = machine.look()
    assert [name for name, finding in findings.items() if finding.status != "works"] == []
    assert findings["NVIDIA GPU"].detail == (
        "NVIDIA GeForce RTX 4070; experimental, not run on a GPU"
    )
    assert findings["onnxruntime-cuda"].detail == "1.31.1"
    assert findings["openvino"].detail == "2026.4.1, computes in FP32, INT8"
    assert findings["tensorrt"].detail == "11.4.0"
    assert findings["tensorrt_rtx, build only"].status == "works"
    assert findings["torch on CUDA"].detail == "2.15.0, built for CUDA 13.2"
    assert findings["extra graph"].detail == "onnx 1.2, onnx_ir 1.2, onnxscript 1.2"
    assert {"extra train", "extra timm", "extra parquet", "extra demo"} < set(findings)


@pytest.mark.slow
def test_doctor_without_a_gpu(machine, no_gpu):
    findings = machine.look()
    assert {name for name, finding in findings.items() if finding.status == "no GPU"} == {
        *("NVIDIA GPU", "onnxruntime-cuda", "tensorrt", "tensorrt_rtx", "torch on CUDA")
    }
    assert {finding.status for finding in findings.values()} == {"no GPU", "works"}
    assert findings["NVIDIA GPU"].remedy == (
        "Install NVIDIA's driver, or start the container with --gpus all"
    )


def test_doctor_driver_that_does_not_start(machine, monkeypatch):
    driver = SimpleNamespace(cuInit=lambda flags: 803, cuGetErrorString=lambda status, words: 1)
    monkeypatch.setattr("deploykit.system.gpu.ctypes.CDLL", lambda name: driver)
    findings = machine.look("onnxruntime-cpu", "onnxruntime-cuda")
    assert findings["NVIDIA GPU"].status == "broken"
    assert "does not start: error 803" in findings["NVIDIA GPU"].detail
    assert findings["NVIDIA GPU"].remedy == (
        "Restart the machine, as every update of NVIDIA's driver demands"
    )
    assert findings["onnxruntime-cuda"].status == "no GPU"


FALLS_BACK = r"""
import sys
class InferenceSession(InferenceSession):
    def get_providers(self):
        print("\x1b[1;31m12:00 [E:ort] x.cc:1 [ONNXRuntimeError] : 1 : FAIL : Failed to load",
              "libonnxruntime_providers_cuda.so with error: libcudnn.so.9: not found\n\x1b[m",
              file=sys.stderr)
        return ["CPUExecutionProvider"]
"""
NO_BUILDER = """
class Builder:
    def __init__(self, log):
        log.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")
"""


@pytest.mark.parametrize(
    ("module", "source", "name", "detail", "remedy"),
    [
        (
            *("openvino", "raise ImportError('libopenvino.so: cannot open')", "openvino"),
            "ImportError: libopenvino.so: cannot open",
            "pip install --force-reinstall --no-deps openvino",
        ),
        (
            *("torchvision", "raise RuntimeError('no\\n operator nms')", "torch"),
            "RuntimeError: no operator nms",
            "pip install --force-reinstall torch torchvision",
        ),
        (
            *("timm", "import no_such_module", "extra timm"),
            "ModuleNotFoundError: No module named 'no_such_module'",
            'pip install "deploykit[timm]"',
        ),
        (
            *("onnxruntime", ONNX_RUNTIME.replace("-inputs", "inputs"), "onnxruntime-cpu"),
            "ArithmeticError: it computes [1. 1. 1. 1.] where [-1. -1. -1. -1.] is right",
            KEEP_ONE,
        ),
        (
            *("onnxruntime", "", "onnxruntime-cpu"),
            "AttributeError: module 'onnxruntime' has no attribute 'set_default_logger_severity'",
            KEEP_ONE,
        ),
        (
            *("onnxruntime", ONNX_RUNTIME.replace('"CUDAExecutionProvider", ', "")),
            "onnxruntime-cuda",
            "RuntimeError: this onnxruntime 1.31.1 is built without CUDA",
            KEEP_ONE,
        ),
        (
            *("onnxruntime", ONNX_RUNTIME + FALLS_BACK, "onnxruntime-cuda"),
            "computed on the CPU, although CUDA was asked for: 1 : FAIL : Failed to load "
            "libonnxruntime_providers_cuda.so with error: libcudnn.so.9: not found",
            'pip install "deploykit[cuda]"',
        ),
        (
            *("tensorrt", TENSORRT + NO_BUILDER, "tensorrt"),
            "DeviceError: tensorrt 11.4.0 makes no builder: CUDA initialization failure with "
            "error: 35",
            "Install a newer NVIDIA driver: https://www.nvidia.com/drivers",
        ),
        (
            *("cuda/bindings/runtime", "import cuda.bindings.no_such_module", "tensorrt_rtx"),
            "ModuleNotFoundError: No module named 'cuda.bindings.no_such_module'",
            'pip install "deploykit[rtx]"',
        ),
        (
            *("torch", TORCH.replace("return 1.0", "assert device == 'cpu', 'no CUDA'")),
            "torch on CUDA",
            "AssertionError: no CUDA",
            "Install torch for your CUDA: https://pytorch.org/get-started/locally",
        ),
    ],
)
def test_doctor_shows_the_error_of_the_library(
    machine, rtx_4070, monkeypatch, module, source, name, detail, remedy
):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    machine.package("onnxruntime-gpu", "1.31.1", module="onnxruntime")
    machine.module(module, source)
    finding = machine.look(name)[name]
    assert (finding.status, finding.detail, finding.remedy) == ("broken", detail, remedy)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_doctor_import_that_crashes(machine, no_gpu):
    machine.module("onnx", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    finding = machine.look("extra graph")["extra graph"]
    assert (finding.status, finding.detail) == ("broken", "crashed (SIGSEGV)")
    assert finding.remedy.startswith("pip install --force-reinstall --no-deps onnx")


def test_doctor_import_that_hangs(machine, no_gpu, monkeypatch):
    monkeypatch.setattr(run, "TIMEOUT_S", 2.0)
    machine.module("openvino", "import time; time.sleep(60)")
    finding = machine.look("openvino")["openvino"]
    assert (finding.status, finding.detail) == ("broken", "no answer within 2 seconds")


def test_doctor_packages_not_installed(machine, no_gpu, monkeypatch):
    for module in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    findings = machine.look("openvino", "onnxruntime-cpu")
    assert findings["openvino"].status == "not installed"
    assert findings["openvino"].remedy == 'pip install "deploykit[openvino]"'
    assert findings["onnxruntime-cpu"].status == "broken"  # deploykit requires it
    assert findings["onnxruntime-cpu"].remedy == "pip install deploykit"


@pytest.mark.parametrize(
    ("processor", "unwanted", "wanted"),
    [
        ("x86_64", "onnxruntime", "onnxruntime-gpu"),
        ("aarch64", "onnxruntime-gpu", "onnxruntime"),
    ],
)
def test_doctor_two_packages_of_onnx_runtime(
    machine, rtx_4070, monkeypatch, processor, unwanted, wanted
):
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(sys, "platform", "linux")
    for package in ("onnxruntime", "onnxruntime-gpu"):
        machine.package(package, "1.31.1", module="onnxruntime")
    machine.module("onnxruntime", ONNX_RUNTIME + FALLS_BACK)
    findings = machine.look("onnxruntime-cpu", "onnxruntime-cuda")
    assert findings["onnxruntime packages"].detail.startswith("onnxruntime and onnxruntime-gpu")
    assert findings["onnxruntime-cpu"].status == "works"
    for name in ("onnxruntime packages", "onnxruntime-cuda"):
        assert findings[name].status == "broken"
        assert findings[name].remedy == (
            f"pip uninstall -y {unwanted}\npip install --force-reinstall --no-deps {wanted}"
        )


def test_doctor_requirements(machine, no_gpu):
    machine.package(
        *("deploykit", "0.1.0", "Provides-Extra: graph", "Provides-Extra: other"),
        "Requires-Dist: no-such-package>=2",
        "Requires-Dist: no-other-package; sys_platform == 'no-such-system'",
        "Requires-Dist: numpy>=1",
        "Requires-Dist: onnx>=1.20; extra == 'graph'",
        "Requires-Dist: absent>=3; extra == 'other'",
    )
    machine.package("onnx", "1.19.0")
    finding = machine.look("extra graph")["requirements"]
    assert finding.status == "broken"
    assert finding.detail == (
        "no-such-package is not installed, onnx 1.19.0, but onnx>=1.20 is needed"
    )
    assert finding.remedy == 'pip install "no-such-package>=2" "onnx>=1.20"'


@pytest.mark.skipif(os.name == "nt", reason="a script for POSIX")
def test_doctor_text(machine, rtx_4070, monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4070, 580.65.06, 12282 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    machine.module("timm", "raise OSError('a long error ' * 20)")
    text = examination_text(run.examine_machine())
    lines = text.splitlines()
    assert (
        "gpu       NVIDIA GeForce RTX 4070, compute capability 8.9 (--target sm89), CUDA up to 13.0"
        in lines
    )
    assert "driver    NVIDIA GeForce RTX 4070, 580.65.06, 12282 MiB" in lines
    assert any(line.startswith("memory    ") and line.endswith(" GiB") for line in lines)
    assert any(line.startswith("versions  python 3.") for line in lines)
    assert any(line.startswith("extra parquet ") and "(optional)" in line for line in lines)
    assert any(line.endswith('| -> pip install "deploykit[parquet]"') for line in lines)
    assert max(len(line) for line in lines[lines.index("") :]) < 150
    assert text.isascii()


def test_doctor_cuda_fallback_to_cpu(rtx_4070, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("an ONNX Runtime without CUDA")
    (check,) = (check for check in run.CHECKS if check.name == "onnxruntime-cuda")
    monkeypatch.setattr(run, "CHECKS", (check,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    finding = run.examine_machine().findings[-1]
    assert finding.status == "broken"
    assert finding.detail.startswith("computed on the CPU, although CUDA was asked for: ")
    assert finding.remedy


@pytest.mark.gpu
def test_doctor_on_a_gpu(monkeypatch):
    monkeypatch.setattr(run, "CHECKS", tuple(check for check in run.CHECKS if check.needs_gpu))
    for finding in run.examine_machine().findings:
        assert finding.status in ("works", "not installed"), finding
